#include "convert/joint_latent.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg/linalg.h"
#include "tensor/dtype.h"

int kf_joint_most(const kf_attention_config *a, int64_t hidden, int rope_dim) {
  int64_t rows = (int64_t)a->kv_heads * (a->d_qk + a->d_v) - (a->rope_pairs[0] ? rope_dim : 0);
  int64_t inputs = hidden + (a->k_bias || a->v_bias);
  return (int)(rows < inputs ? rows : inputs);
}

/* ---------------------------------------------------------------------------------------------- RoRoPE */

/* PCA of one group's channels (head g, frequency first + i), both numbers of a pair as samples of one. mix: [n, n], n =
 * kv_heads fold, one channel a row. key: [merged, merged] moment of the keys. */
static kf_status mix_group(const kf_attention_config *a, const double *key, int first, int fold, double *mix, double *energy,
                           kf_error *e) {
  int64_t d = a->d_qk, half = d / 2, merged = a->kv_heads * d, n = (int64_t)a->kv_heads * fold;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) {
      int64_t row = i / fold * d + first + i % fold, column = j / fold * d + first + j % fold;
      mix[i * n + j] = key[row * merged + column] + key[(row + half) * merged + column + half];
    }
  return kf_eigh(mix, n, energy, e);
}

/* Rows of `turn` for channel c of a group: its two numbers, each a mix of the same numbers of the source's pairs. */
static void place_channel(const kf_joint *j, const double *mix, int first, int fold, int64_t c, int64_t re, int64_t im,
                          bool bf16) {
  int64_t d = j->p->a->d_qk, half = d / 2, n = (int64_t)j->p->a->kv_heads * fold;
  for (int64_t i = 0; i < n; i++) {
    double value = bf16 ? kf_bf16_to_f32(kf_f32_to_bf16((float)mix[c * n + i])) : mix[c * n + i];
    int64_t column = i / fold * d + first + i % fold;
    j->turn[re * j->merged + column] = value;
    j->turn[im * j->merged + column + half] = value;
  }
}

static kf_status turn_heads(kf_joint *j, const double *turn_moment, const kf_joint_settings *s, kf_error *e) {
  const kf_attention_config *a = j->p->a;
  int fold = s->freqfold, collapse = a->d_qk / s->rope_dim, kept = fold / collapse;
  int64_t n = (int64_t)a->kv_heads * fold, rest = 2 * j->pairs;
  kf_arena arena = {0};
  double *key = kf_arena_alloc(&arena, (size_t)(j->merged * j->merged), sizeof *key, e);
  double *mix = kf_arena_alloc(&arena, (size_t)(n * n), sizeof *mix, e),
         *energy = kf_arena_alloc(&arena, (size_t)n, sizeof *energy, e);
  kf_status status = key && mix && energy ? KF_OK : KF_ERROR_MEMORY;
  if (status == KF_OK) status = kf_projected_moment(j->p->k, j->merged, j->p->width, turn_moment, key, e);
  for (int group = 0; group * fold < a->d_qk / 2 && status == KF_OK; group++) {
    status = mix_group(a, key, group * fold, fold, mix, energy, e);
    for (int64_t c = 0; c < n && status == KF_OK; c++) {
      int64_t pair = group * kept + c;
      if (c < kept) j->frequency[pair] = (int32_t)(group * fold + c * collapse);
      place_channel(j, mix, group * fold, fold, c, c < kept ? pair : rest, c < kept ? j->pairs + pair : rest + 1, s->code);
      if (c >= kept) rest += 2;
    }
  }
  kf_arena_free(&arena);
  return status;
}

/* ---------------------------------------------------------------------------------------------- the latents' directions */

/* (1 - a) M + a tr(M) / d I over the inputs; the constant that stands for the bias is not shrunk. */
static void shrink(const double *moment, int64_t width, double part, double *out) {
  double mean = 0;
  for (int64_t i = 0; i < width - 1; i++) mean += moment[i * width + i] / (double)(width - 1);
  for (int64_t i = 0; i < width; i++)
    for (int64_t j = 0; j < width; j++) {
      bool input = i < width - 1 && j < width - 1;
      out[i * width + j] = (input ? 1 - part : 1) * moment[i * width + j] + (input && i == j ? part * mean : 0);
    }
}

/* Mean length of columns [first, end) of the activations with this moment. */
static double mean_length(const double *moment, int64_t rows, int64_t first, int64_t end) {
  double sum = 0;
  for (int64_t i = first; i < end; i++) sum += sqrt(fmax(moment[i * rows + i], 0));
  return end > first ? sum / (double)(end - first) : 0;
}

static double balanced_scale(const kf_joint *j, const kf_joint_settings *s) {
  int64_t skipped = s->code ? 2 * j->pairs : 0;
  if (s->balance == 0 || j->keys == 0) return 1;
  double key = mean_length(j->basis, j->rows, 0, j->keys), value = mean_length(j->basis, j->rows, j->keys + skipped, j->rows);
  return key > 0 && value > 0 ? value * s->balance / key : 1;
}

static kf_status find_directions(kf_joint *j, const double *moment, const kf_joint_settings *s, kf_error *e) {
  double *shrunk;
  KF_NEW(shrunk, j->p->width * j->p->width, e);
  shrink(moment, j->p->width, s->shrinkage, shrunk);
  kf_status status = kf_projected_moment(j->stack, j->rows, j->p->width, shrunk, j->basis, e);
  free(shrunk);
  KF_TRY(status);
  j->key_scale = balanced_scale(j, s);
  for (int64_t r = 0; r < j->rows; r++)
    for (int64_t c = 0; c < j->rows; c++)
      j->basis[r * j->rows + c] *= (r < j->keys ? j->key_scale : 1) * (c < j->keys ? j->key_scale : 1);
  return kf_eigh(j->basis, j->rows, j->energy, e);
}

static kf_status create(kf_joint *j, const double *turn_moment, const double *moment, const kf_joint_settings *s, kf_error *e) {
  const kf_attention_config *a = j->p->a;
  int64_t width = j->p->width;
  KF_NEW(j->turn, j->merged * j->merged, e);
  KF_NEW(j->frequency, j->pairs, e);
  KF_NEW(j->stack, j->rows * width, e);
  KF_NEW(j->basis, j->rows * j->rows, e);
  KF_NEW(j->energy, j->rows, e);
  for (int64_t i = 0; i < j->merged && !j->pairs; i++) j->turn[i * j->merged + i] = 1;
  if (j->pairs) KF_TRY(turn_heads(j, turn_moment, s, e));
  kf_gemm(false, false, j->keys, width, j->merged, 1, j->turn + 2 * j->pairs * j->merged, j->p->k, 0, j->stack);
  memcpy(j->stack + j->keys * width, j->p->v, (size_t)((int64_t)a->kv_heads * a->d_v * width) * sizeof *j->stack);
  return find_directions(j, moment, s, e);
}

kf_status kf_joint_create(const kf_projections *p, const double *turn_moment, const double *moment, const kf_joint_settings *s,
                          int64_t window, kf_joint *out, kf_error *e) {
  const kf_attention_config *a = p->a;
  double *frequency;
  *out = (kf_joint){.p = p, .pairs = a->rope_pairs[0] ? s->rope_dim / 2 : 0, .gain = 1, .merged = (int64_t)a->kv_heads * a->d_qk};
  out->keys = out->merged - 2 * out->pairs;
  out->rows = out->keys + (int64_t)a->kv_heads * a->d_v;
  KF_NEW(frequency, a->d_qk / 2, e);
  if (out->pairs) kf_rope_frequencies(&a->rope, window, frequency, &out->gain);
  free(frequency);
  kf_status status = create(out, turn_moment, moment, s, e);
  if (status != KF_OK) kf_joint_free(out);
  return status;
}

void kf_joint_free(kf_joint *j) {
  free(j->turn);
  free(j->frequency);
  free(j->stack);
  free(j->basis);
  free(j->energy);
  *j = (kf_joint){0};
}

kf_status kf_joint_spectra(const kf_joint *j, const double *moment, double shrinkage, double *key, double *value, kf_error *e) {
  int64_t width = j->p->width, values = j->rows - j->keys, most = j->keys > values ? j->keys : values;
  kf_arena arena = {0};
  double *shrunk = kf_arena_alloc(&arena, (size_t)(width * width), sizeof *shrunk, e);
  double *own = kf_arena_alloc(&arena, (size_t)(most * most), sizeof *own, e);
  kf_status s = shrunk && own ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) shrink(moment, width, shrinkage, shrunk);
  if (s == KF_OK) s = kf_projected_moment(j->stack, j->keys, width, shrunk, own, e);
  if (s == KF_OK && j->keys) s = kf_eigh(own, j->keys, key, e);
  if (s == KF_OK) s = kf_projected_moment(j->stack + j->keys * width, values, width, shrunk, own, e);
  if (s == KF_OK) s = kf_eigh(own, values, value, e);
  kf_arena_free(&arena);
  return s;
}

/* ---------------------------------------------------------------------------------------------- the converted layer */

/* Per query head its own rows, then its part of the turned pairs: (turn W_k x)[pair] . q = W_k x . (turn^T q). */
static kf_status map_query(const kf_joint *j, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = j->p->a;
  int64_t d = a->d_qk, wide = d + 2 * j->pairs, width = j->p->width;
  double *q = kf_alloc((size_t)(a->heads * wide * width), sizeof *q, e),
         *block = kf_alloc((size_t)(2 * j->pairs * d), sizeof *block, e);
  kf_status s = q && block ? KF_OK : KF_ERROR_MEMORY;
  for (int h = 0; h < a->heads && s == KF_OK; h++) {
    int64_t g = h / (a->heads / a->kv_heads);
    const double *own = j->p->q + h * d * width;
    for (int64_t r = 0; r < 2 * j->pairs; r++) memcpy(block + r * d, j->turn + r * j->merged + g * d, (size_t)d * sizeof *block);
    memcpy(q + h * wide * width, own, (size_t)(d * width) * sizeof *q);
    kf_gemm(false, false, 2 * j->pairs, width, d, 1, block, own, 0, q + (h * wide + d) * width);
  }
  if (s == KF_OK) s = kf_mapped_affine(out, "q_proj.weight", "q_proj.bias", a->q_bias, q, a->heads * wide, width - 1, width, e);
  free(q);
  free(block);
  return s;
}

/* Latents R D [K; V] x with D the scale of the keys, then the turned pairs. */
static kf_status map_down(const kf_joint *j, int64_t rank, kf_mapped *out, kf_error *e) {
  int64_t width = j->p->width, rows = rank + 2 * j->pairs;
  double *down = kf_alloc((size_t)(rows * width), sizeof *down, e),
         *encoder = kf_alloc((size_t)(rank * j->rows), sizeof *encoder, e);
  kf_status s = down && encoder ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) {
    for (int64_t i = 0; i < rank * j->rows; i++) encoder[i] = j->basis[i] * (i % j->rows < j->keys ? j->key_scale : 1);
    kf_gemm(false, false, rank, width, j->rows, 1, encoder, j->stack, 0, down);
    kf_gemm(false, false, 2 * j->pairs, width, j->merged, 1, j->turn, j->p->k, 0, down + rank * width);
    s = kf_mapped_affine(out, "kv_a_proj.weight", "kv_a_proj.bias", out->attention.kv_a_bias, down, rows, width - 1, width, e);
  }
  free(down);
  free(encoder);
  return s;
}

/* Per KV head its keys without RoPE, turn^T D^-1 R^T c, then its values. What lost its rotation keeps the rotation's gain. */
static kf_status map_up(const kf_joint *j, int64_t rank, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = j->p->a;
  int64_t d = a->d_qk, dv = a->d_v;
  double *decoder = kf_alloc((size_t)(j->rows * rank), sizeof *decoder, e),
         *key = kf_alloc((size_t)(j->merged * rank), sizeof *key, e);
  float *to = decoder && key ? kf_mapped_add(out, "kv_b_proj.weight", a->kv_heads * (d + dv), rank, e) : NULL;
  for (int64_t i = 0; to && i < j->rows; i++)
    for (int64_t r = 0; r < rank; r++)
      decoder[i * rank + r] = j->basis[r * j->rows + i] * (i < j->keys ? j->gain * j->gain / j->key_scale : 1);
  if (to && j->keys) kf_gemm(true, false, j->merged, rank, j->keys, 1, j->turn + 2 * j->pairs * j->merged, decoder, 0, key);
  for (int64_t g = 0; to && g < a->kv_heads; g++) {
    const double *value = decoder + (j->keys + g * dv) * rank;
    for (int64_t i = 0; i < d * rank; i++) *to++ = (float)key[g * d * rank + i];
    for (int64_t i = 0; i < dv * rank; i++) *to++ = (float)value[i];
  }
  free(decoder);
  free(key);
  return to ? KF_OK : KF_ERROR_MEMORY;
}

static kf_status assemble(const kf_joint *j, int rank, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = j->p->a;
  KF_NEW(out->rope_pairs, 1, e);
  KF_NEW(out->rope_index, j->pairs, e);
  out->rope_pairs[0] = j->pairs;
  memcpy(out->rope_index, j->frequency, (size_t)j->pairs * sizeof *out->rope_index);
  out->attention = *a;
  out->attention.kind = KF_LATENT;
  out->attention.d_qk = a->d_qk + 2 * j->pairs;
  out->attention.rope_heads = 1;
  out->attention.rope_pairs = out->rope_pairs;
  out->attention.rope_index = out->rope_index;
  out->attention.rank = rank;
  out->attention.latent_eps = 1e-6f;
  out->attention.kv_a_bias = a->k_bias || a->v_bias;
  KF_TRY(map_query(j, out, e));
  KF_TRY(map_down(j, rank, out, e));
  return map_up(j, rank, out, e);
}

kf_status kf_joint_map(const kf_joint *j, int rank, kf_mapped *out, kf_error *e) {
  *out = (kf_mapped){0};
  kf_status s = assemble(j, rank, out, e);
  if (s != KF_OK) kf_mapped_free(out);
  return s;
}
