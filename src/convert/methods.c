/* The table of methods. A method is a row; its keys are what --set and a recipe's `set` may say. */
#include "convert/plan.h"

static const kf_method methods[] = {
    {"mha2mla",
     "keeps RoPE on a few pairs of each KV head and factors the rest of K with V by one SVD (MHA2MLA, arXiv 2502.14837)",
     kf_mha2mla_keys, kf_mha2mla_resolve, kf_mha2mla_open, kf_mha2mla_map, NULL, kf_mha2mla_close},
    {"x-ecomla", "factors K with V by one SVD beside one RoPE key that all heads share (X-EcoMLA, arXiv 2503.11132)",
     kf_xecomla_keys, kf_xecomla_resolve, NULL, kf_xecomla_map, NULL, NULL},
    {"fold",
     "weighs every rotated channel and latent by the output error it would cause on calibration text (kvfold's own; "
     "docs/METHODS.md)",
     kf_fold_keys, kf_fold_resolve, kf_fold_open, kf_fold_map, kf_fold_record, kf_fold_close},
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
