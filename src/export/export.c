/* kf_export: reads the converted model, settles format and type, and hands over to the format. */
#include "export/export.h"

#include <stdlib.h>
#include <string.h>

#include "model/model.h"

kf_status kf_export_count(kf_export_job *j, const kf_stock_tensor *t, kf_dtype dtype, kf_error *e) {
  size_t bytes;
  int64_t count = t->shape[0] * t->shape[1] * t->shape[2];
  if (!kf_dtype_bytes(dtype, count, &bytes)) return kf_fail(e, KF_ERROR_INPUT, "tensor %s is too large", t->name);
  j->result.tensors++;
  j->result.bytes += (int64_t)bytes;
  return kf_progress(j->hooks, "exporting", (double)j->result.tensors, (double)j->all, e);
}

static kf_status choose_dtype(kf_export_job *j, const char *name, bool gguf, kf_error *e) {
  j->dtype = kf_weights_dtype(&j->weights);
  if (name && (!kf_dtype_parse(name, &j->dtype) || (j->dtype > KF_BF16 && j->dtype != KF_Q8_0)))
    return kf_fail(e, KF_ERROR_USAGE, "dtype '%.40s' cannot be written (known: f32, bf16, f16, q8_0)", name);
  if (gguf || j->dtype == KF_F32 || j->dtype == KF_BF16) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT,
                 "the neutralised norm of the latents leaves the range of %s in a DeepSeek-V3 directory: write bf16 or f32, or "
                 "%s as --format gguf",
                 kf_dtype_name(j->dtype), kf_dtype_name(j->dtype));
}

/* The GGUF file that the model was converted from. */
static kf_status open_source(kf_export_job *j, const char *source, bool gguf, kf_error *e) {
  if (!source) return KF_OK;
  if (!gguf) return kf_fail(e, KF_ERROR_USAGE, "a source is copied from into a GGUF file only (--format gguf)");
  KF_TRY(kf_locate(source, j->source_path, e));
  KF_TRY(kf_model_read(j->source_path, &j->source_config, &j->source, e));
  if (kf_source_gguf(j->source.source)) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT, "%s is not a GGUF file, whose tensors can be copied into one", j->source_path);
}

static kf_status choose_format(const char *out, const char *name, bool *gguf, kf_error *e) {
  size_t n = strlen(out);
  *gguf = name ? strcmp(name, "gguf") == 0 : n > 5 && strcmp(out + n - 5, ".gguf") == 0;
  if (!name || *gguf || strcmp(name, "deepseek-v3") == 0) return KF_OK;
  return kf_fail(e, KF_ERROR_USAGE, "format '%.40s' is not known (known: deepseek-v3, gguf)", name);
}

kf_status kf_export(const char *model, const char *out, const kf_export_options *o, kf_export_result *result, kf_error *e) {
  kf_export_job *j;
  bool gguf;
  kf_status s;
  KF_TRY(choose_format(out ? out : "", o->format, &gguf, e));
  if (o->pad < 0) return kf_fail(e, KF_ERROR_USAGE, "pad %d is not a number of latents", o->pad);
  if (!o->check && kf_exists(out)) return kf_fail(e, KF_ERROR_IO, "%s exists", out);
  KF_NEW(j, 1, e);
  j->out = out;
  j->pad = o->pad;
  j->f16_latents = o->f16_latents;
  j->hooks = &o->hooks;
  j->check = o->check;
  KF_GO(kf_locate(model, j->path, e));
  KF_GO(kf_model_read(j->path, &j->config, &j->weights, e));
  KF_GO(choose_dtype(j, o->dtype, gguf, e));
  KF_GO(open_source(j, o->source, gguf, e));
  KF_GO(gguf ? kf_export_gguf(j, e) : kf_export_deepseek(j, e));
  strcpy(j->result.format, gguf ? "gguf" : "deepseek-v3");
  strcpy(j->result.dtype, kf_dtype_name(j->dtype));
  if (result) *result = j->result;
done:
  kf_weights_close(&j->source);
  kf_config_free(&j->source_config);
  kf_weights_close(&j->weights);
  kf_config_free(&j->config);
  free(j);
  return s;
}
