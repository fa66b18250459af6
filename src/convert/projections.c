#include "convert/projections.h"

#include <stdlib.h>

#include "linalg/linalg.h"

static kf_status read_affine(const kf_weights *w, int layer, const char *name, bool bias, int64_t rows, int64_t width,
                             double **out, kf_error *e) {
  float *weight = NULL, *offset = NULL;
  kf_status s;
  KF_NEW(*out, rows * width, e);
  KF_GO(kf_weights_readf(w, rows, width - 1, &weight, e, "model.layers.%d.self_attn.%s.weight", layer, name));
  if (bias) KF_GO(kf_weights_readf(w, rows, 1, &offset, e, "model.layers.%d.self_attn.%s.bias", layer, name));
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < width - 1; i++) (*out)[r * width + i] = weight[r * (width - 1) + i];
    (*out)[r * width + width - 1] = bias ? offset[r] : 0;
  }
done:
  free(weight);
  free(offset);
  return s;
}

kf_status kf_projections_read(const kf_weights *w, int layer, kf_projections *out, kf_error *e) {
  const kf_attention_config *a = &w->config->layer[layer].attention;
  int64_t q = (int64_t)a->heads * a->d_qk, k = (int64_t)a->kv_heads * a->d_qk, v = (int64_t)a->kv_heads * a->d_v;
  *out = (kf_projections){.a = a, .width = w->config->hidden + 1};
  kf_status s = read_affine(w, layer, "q_proj", a->q_bias, q, out->width, &out->q, e);
  if (s == KF_OK) s = read_affine(w, layer, "k_proj", a->k_bias, k, out->width, &out->k, e);
  if (s == KF_OK) s = read_affine(w, layer, "v_proj", a->v_bias, v, out->width, &out->v, e);
  if (s != KF_OK) kf_projections_free(out);
  return s;
}

void kf_projections_free(kf_projections *p) {
  free(p->q);
  free(p->k);
  free(p->v);
  *p = (kf_projections){0};
}

kf_status kf_projections_check(const kf_plan *p, kf_error *e) {
  for (int i = 0; i < p->source->layers; i++)
    if (p->source->layer[i].attention.qk_norm)
      return kf_fail(e, KF_ERROR_INPUT, "layer %d has q/k norms, which %s cannot carry; fold (in stock engines too), mha2mla and x-ecomla can", i,
                     p->method->name);
  return KF_OK;
}

kf_status kf_projected_moment(const double *a, int64_t rows, int64_t width, const double *moment, double *out, kf_error *e) {
  double *through;
  KF_NEW(through, rows * width, e);
  kf_gemm(false, false, rows, width, width, 1, a, moment, 0, through);
  kf_gemm(false, true, rows, rows, width, 1, through, a, 0, out);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < i; j++) out[i * rows + j] = out[j * rows + i] = (out[i * rows + j] + out[j * rows + i]) / 2;
  free(through);
  return KF_OK;
}

kf_status kf_mapped_affine(kf_mapped *m, const char *weight, const char *bias, bool has_bias, const double *from, int64_t rows,
                           int64_t hidden, int64_t width, kf_error *e) {
  float *w = kf_mapped_add(m, weight, rows, hidden, e), *b = NULL;
  if (!w || (has_bias && !(b = kf_mapped_add(m, bias, rows, 0, e)))) return KF_ERROR_MEMORY;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < hidden; i++) w[r * hidden + i] = (float)from[r * width + i];
    if (b) b[r] = (float)from[r * width + hidden];
  }
  return KF_OK;
}
