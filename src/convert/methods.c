/* The table of methods. A method is a row; its keys are what --set and a recipe's `set` may say. */
#include "convert/plan.h"

static const kf_method methods[] = {
    {"mha2mla",
     "keeps RoPE on a few pairs of each KV head and factors the rest of K with V by one SVD (MHA2MLA, arXiv 2502.14837)",
     "a RoPE key for each head", kf_mha2mla_keys, kf_mha2mla_resolve, kf_mha2mla_open, kf_mha2mla_map, NULL, kf_mha2mla_close,
     false},
    {"x-ecomla", "factors K with V by one SVD beside one RoPE key that all heads share (X-EcoMLA, arXiv 2503.11132)", NULL,
     kf_xecomla_keys, kf_xecomla_resolve, NULL, kf_xecomla_map, NULL, NULL, false},
    {"fold",
     "weighs every rotated channel and latent by the output error it would cause on calibration text (kvfold's own; "
     "docs/METHODS.md)",
     NULL, kf_fold_keys, kf_fold_resolve, kf_fold_open, kf_fold_map, kf_fold_record, kf_fold_close, true},
    {"transmla",
     "merges the KV heads, keeps RoPE on a few pairs of their PCA and puts the rest into one latent (arXiv 2502.07864)", NULL,
     kf_transmla_keys, kf_transmla_resolve, kf_transmla_open, kf_joint_convert, kf_joint_record, kf_joint_close, false},
    {"care", "RoPE as transmla, latents by an SVD weighted with the inputs' covariance (CARE, arXiv 2603.17946)", NULL,
     kf_care_keys, kf_care_resolve, kf_care_open, kf_joint_convert, kf_joint_record, kf_joint_close, false},
    {"kv-heads", "merges KV heads by an SVD of their caches; the result is a grouped model like the source (arXiv 2406.07056)",
     "grouped attention", kf_kv_heads_keys, kf_kv_heads_resolve, kf_kv_heads_open, kf_kv_heads_map, NULL, kf_kv_heads_close,
     false},
    {.name = "none", .help = "changes no weights: another dtype, or a GGUF file as a Hugging Face directory"},
};

const kf_method *kf_method_at(int index) {
  return index >= 0 && index < (int)(sizeof methods / sizeof *methods) ? &methods[index] : NULL;
}

const char *kf_method_name(int index) {
  const kf_method *m = kf_method_at(index);
  return m ? m->name : NULL;
}

const char *kf_method_help(int index) {
  const kf_method *m = kf_method_at(index);
  return m ? m->help : NULL;
}
