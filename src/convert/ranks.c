#include "convert/ranks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b, void *scores) {
  int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
  double x = ((const double *)scores)[i], y = ((const double *)scores)[j];
  return x > y ? -1 : x < y ? 1 : (i > j) - (i < j);
}

void kf_ranks_order(const double *scores, int n, int32_t *order) {
  for (int i = 0; i < n; i++) order[i] = i;
  qsort_r(order, (size_t)n, sizeof *order, compare, (void *)scores);
}

void kf_ranks_free(kf_ranks *r) {
  if (!r) return;
  free(r->score);
  *r = (kf_ranks){0};
}

/* layers, heads and the last dimension of a tensor of three. */
static kf_status read_shape(const char *name, const kf_view *v, kf_ranks *r, int *width, kf_error *e) {
  enum { MOST = 1 << 16 };
  if (v->dims != 3)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s has %d dimensions, expected [layers, heads, numbers]", name, v->name,
                   v->dims);
  for (int i = 0; i < 3; i++)
    if (v->shape[i] < 1 || v->shape[i] > MOST)
      return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s has a dimension of %lld", name, v->name, (long long)v->shape[i]);
  r->layers = (int)v->shape[0];
  r->heads = (int)v->shape[1];
  *width = (int)v->shape[2];
  return KF_OK;
}

static kf_status read_scores(const char *name, const kf_view *v, kf_ranks *r, kf_error *e) {
  KF_TRY(read_shape(name, v, r, &r->half, e));
  if (v->dtype != KF_F32)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s has type %s, expected f32 scores", name, v->name, kf_dtype_name(v->dtype));
  r->scored = true;
  int64_t n = (int64_t)r->layers * r->heads * r->half;
  KF_NEW(r->score, n, e);
  for (int64_t i = 0; i < n; i++) {
    float f;
    memcpy(&f, v->data + i * 4, 4);
    if (!isfinite(f)) return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s holds a score that is not finite", name, v->name);
    r->score[i] = f;
  }
  return KF_OK;
}

static int64_t rank_at(const kf_view *v, int64_t i) {
  int64_t value;
  if (v->dtype == KF_U8) return v->data[i];
  memcpy(&value, v->data + i * 8, 8);
  return value;
}

static kf_status read_ranks(const char *name, const kf_view *v, kf_ranks *r, kf_error *e) {
  int width = 0;
  KF_TRY(read_shape(name, v, r, &width, e));
  if (v->dtype != KF_U8 && v->dtype != KF_I64)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s has type %s, expected u8 or i64 ranks", name, v->name,
                   kf_dtype_name(v->dtype));
  if (width % 2)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s has rows of %d ranks, expected an even number", name, v->name, width);
  r->half = width / 2;
  int64_t rows = (int64_t)r->layers * r->heads;
  int64_t *seen; /* [half] row that last had this rank, plus one */
  KF_NEW(seen, r->half, e);
  r->score = kf_alloc((size_t)(rows * r->half), sizeof *r->score, e);
  kf_status s = r->score ? KF_OK : KF_ERROR_MEMORY;
  for (int64_t row = 0; s == KF_OK && row < rows; row++)
    for (int k = 0; s == KF_OK && k < r->half; k++) {
      int64_t rank = rank_at(v, row * width + k);
      if (rank < 0 || rank >= r->half || seen[rank] == row + 1 || rank_at(v, row * width + r->half + k) != rank)
        s = kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s, layer %d, head %d: not a permutation of 0 .. %d written twice", name,
                    v->name, (int)(row / r->heads), (int)(row % r->heads), r->half - 1);
      else
        seen[rank] = row + 1, r->score[row * r->half + k] = -(double)rank;
    }
  free(seen);
  return s;
}

kf_status kf_ranks_from(const char *name, const kf_safetensors *file, kf_ranks *out, kf_error *e) {
  *out = (kf_ranks){0};
  const kf_view *scores = kf_safetensors_find(file, "qk_tensor"), *ranks = kf_safetensors_find(file, "ranks");
  if (!scores) scores = kf_safetensors_find(file, "scores");
  kf_status s;
  if (scores)
    s = read_scores(name, scores, out, e);
  else if (ranks)
    s = read_ranks(name, ranks, out, e);
  else
    s = kf_fail(e, KF_ERROR_INPUT, "%s: neither a tensor 'ranks' nor 'qk_tensor' or 'scores' is there", name);
  if (s != KF_OK) kf_ranks_free(out);
  return s;
}

kf_status kf_ranks_read(const char *path, kf_ranks *out, kf_error *e) {
  kf_safetensors *file;
  *out = (kf_ranks){0};
  KF_TRY(kf_safetensors_open(path, &file, e));
  kf_status s = kf_ranks_from(path, file, out, e);
  kf_safetensors_close(file);
  return s;
}

kf_status kf_ranks_fit(kf_ranks *r, const char *path, int layers, int heads, int kv_heads, int half, kf_error *e) {
  if (r->layers != layers || r->half != half || (r->heads != kv_heads && r->heads != heads))
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: made for %d layers of %d heads with %d pairs, but the model has %d layers of %d KV heads with %d pairs",
                   path, r->layers, r->heads, r->half, layers, kv_heads, half);
  if (r->heads == kv_heads) return KF_OK;
  if (!r->scored)
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: holds ranks of %d query heads; the pairs are chosen for %d KV heads, which needs scores or their ranks",
                   path, r->heads, kv_heads);
  int group = heads / kv_heads;
  for (int64_t row = 0; row < (int64_t)layers * kv_heads; row++)
    for (int k = 0; k < half; k++) { /* the sum lands on or before what is still to be read */
      double sum = 0;
      for (int h = 0; h < group; h++) sum += r->score[(row * group + h) * half + k];
      r->score[row * half + k] = sum;
    }
  r->heads = kv_heads;
  return KF_OK;
}
