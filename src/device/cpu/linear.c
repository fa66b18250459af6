/* Weights and y = x W^T: many rows through oneDNN, few rows (decoding) through our own kernels at memory speed; both read
 * the same packed weights. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device/cpu/cpu.h"

enum {
  OWN_ROWS = KF_ROW_GROUP, /* up to here one pass over the weights serves all rows, and beats oneDNN */
  OWN_DOTS = 4,            /* the same where weights are plain rows */
};

static void weight_free(kf_device *d, kf_weight *w) {
  (void)d;
  if (!w) return;
  free(w->data);
  free(w->bias);
  free(w);
}

static size_t weight_bytes(const kf_weight *w) {
  return w->bytes;
}

/* Zeroed memory; large pieces in huge pages, which spare the address translation a miss every 4 KiB. */
static void *alloc_weights(size_t bytes, kf_error *e) {
  enum { HUGE_PAGE = 2 << 20 };
  if (bytes < 2 * HUGE_PAGE) return kf_alloc(bytes, 1, e);
  bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  void *p = aligned_alloc(HUGE_PAGE, bytes);
  if (!p) return kf_alloc(bytes, 1, e);
#if defined(MADV_HUGEPAGE)
  madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return memset(p, 0, bytes);
}

static kf_status weight_create(kf_device *d, bool panels, const float *bias, int64_t n, int64_t k, kf_weight **out, kf_error *e) {
  kf_weight *w;
  KF_NEW(w, 1, e);
  *w = (kf_weight){.type = d->compute, .n = n, .k = k, .panels = panels, .inner = k};
  if (panels) w->inner = kf_round_up(k, d->compute == KF_BF16 ? 32 : 16);
  int64_t rows = panels ? kf_round_up(n, KF_PANEL) : n;
  w->data = alloc_weights((size_t)(rows * w->inner) * kf_element(w->type), e);
  if (bias) w->bias = kf_alloc((size_t)n, sizeof *bias, e);
  if (!w->data || (bias && !w->bias)) {
    weight_free(d, w);
    return KF_ERROR_MEMORY;
  }
  if (bias) memcpy(w->bias, bias, (size_t)n * sizeof *bias);
  w->bytes = (size_t)(rows * w->inner) * kf_element(w->type) + (bias ? (size_t)n * sizeof *bias : 0);
  *out = w;
  return KF_OK;
}

static void *panel_at(const kf_weight *w, int64_t panel) {
  return (char *)w->data + (size_t)(panel * KF_PANEL * w->inner) * kf_element(w->type);
}

/* Outputs of the last panel beyond n are zero. */
static void pack_panel(const kf_tile_kernels *tile, const kf_weight *w, const float *from, int64_t panel, const float *zeros) {
  const void *rows[KF_PANEL];
  for (int64_t i = 0; i < KF_PANEL; i++) rows[i] = panel * KF_PANEL + i < w->n ? from + (panel * KF_PANEL + i) * w->k : zeros;
  kf_slice all = {rows, KF_F32, 0, w->k};
  tile->pack_keys(panel_at(w, panel), &all);
}

static kf_status pack(kf_device *d, const float *w, const float *bias, int64_t n, int64_t k, kf_weight **out, kf_error *e) {
  kf_cpu *c = kf_cpu_of(d);
  if (c->isa < KF_ISA_AVX512) {
    KF_TRY(weight_create(d, false, bias, n, k, out, e));
    memcpy((*out)->data, w, (size_t)(n * k) * sizeof *w);
    return KF_OK;
  }
  float *zeros;
  KF_NEW(zeros, k, e);
  kf_status s = weight_create(d, true, bias, n, k, out, e);
  if (s == KF_OK) {
    int64_t panels = (n + KF_PANEL - 1) / KF_PANEL;
#pragma omp parallel for num_threads(d->threads)
    for (int64_t p = 0; p < panels; p++) pack_panel(c->tile, *out, w, p, zeros);
  }
  free(zeros);
  return s;
}

static kf_status plain(kf_device *d, const float *w, int64_t n, int64_t k, kf_weight **out, kf_error *e) {
  KF_TRY(weight_create(d, false, NULL, n, k, out, e));
  kf_cpu_of(d)->tile->convert((*out)->data, w, n * k, n * k);
  return KF_OK;
}

/* Where the rows that are multiplied come from. */
typedef struct input {
  const float *x;    /* [m, k]; gated: [m, 2k] */
  const float *norm; /* [k] or NULL: rmsnorm(x) */
  float eps;
  bool gated; /* silu of the first half x the second */
} input;

/* Row i of the input as f32: where it stands, or in `space` [k]. */
static const float *input_row(const kf_cpu *c, const input *in, int64_t i, int64_t k, float *space) {
  const float *x = in->x + i * (in->gated ? 2 * k : k);
  if (in->norm)
    c->vector->scale(space, x, in->norm, kf_inverse_rms(c, x, k, in->eps), k);
  else if (in->gated)
    c->vector->swiglu(space, x, x + k, k);
  else
    return x;
  return space;
}

/* The input in the compute type, rows padded with zeros to `inner`. */
static const void *convert_input(kf_cpu *c, const input *in, int64_t m, int64_t k, int64_t inner) {
  bool plain = !in->norm && !in->gated;
  if (plain && c->device.compute == KF_F32 && inner == k) return in->x;
  size_t row = (size_t)inner * kf_element(c->device.compute);
  char *to = kf_scratch(c, KF_SCRATCH_INPUT, (size_t)m * row);
  float *space = kf_scratch(c, KF_SCRATCH_THREADS, (size_t)(c->device.threads * k) * sizeof *space);
  if (!to || !space) return NULL;
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * k) * (in->gated ? 4 : 1)))
  for (int64_t i = 0; i < m; i++)
    c->tile->convert(to + (size_t)i * row, input_row(c, in, i, k, space + omp_get_thread_num() * k), k, inner);
  return to;
}

/* m <= OWN_ROWS rows against one panel. */
static void panel_rows(const kf_cpu *c, float *y, const void *x, const kf_weight *w, int64_t panel, int64_t m, bool add) {
  float sum[OWN_ROWS * KF_PANEL];
  int64_t first = panel * KF_PANEL, columns = kf_least(KF_PANEL, w->n - first);
  c->tile->multiply(sum, KF_PANEL, x, w->inner, panel_at(w, panel), w->inner, m, (int)columns, NULL, NULL);
  for (int64_t i = 0; i < m; i++) {
    float *to = y + i * w->n + first;
    for (int64_t j = 0; j < columns; j++) to[j] = (add ? to[j] : 0) + sum[i * KF_PANEL + j] + (w->bias ? w->bias[first + j] : 0);
  }
}

static void linear_panels(kf_cpu *c, float *y, const void *x, const kf_weight *w, int64_t m, bool add) {
  int64_t panels = (w->n + KF_PANEL - 1) / KF_PANEL;
#pragma omp parallel for schedule(static) num_threads(kf_threads_for(c, (double)(w->n * w->k)))
  for (int64_t p = 0; p < panels; p++) panel_rows(c, y, x, w, p, m, add);
}

static void linear_dots(kf_cpu *c, float *y, const float *x, const kf_weight *w, int64_t m, bool add) {
  int64_t blocks = (w->n + KF_PANEL - 1) / KF_PANEL;
#pragma omp parallel for schedule(static) num_threads(kf_threads_for(c, (double)(w->n * w->k)))
  for (int64_t b = 0; b < blocks; b++) {
    int64_t j = b * KF_PANEL, count = kf_least(KF_PANEL, w->n - j);
    c->vector->dot_rows(y + j, w->n, x, m, (const float *)w->data + j * w->k, count, w->k, w->bias ? w->bias + j : NULL, add);
  }
}

static void multiply(kf_device *d, float *y, const input *in, const kf_weight *w, int64_t m, bool add) {
  kf_cpu *c = kf_cpu_of(d);
  if (m < 1 || d->error.status != KF_OK) return;
  bool panels = w->panels && m <= OWN_ROWS;
  const void *x = convert_input(c, in, m, w->k, panels ? w->inner : w->k);
  if (!x) return;
  if (panels) {
    linear_panels(c, y, x, w, m, add);
  } else if (!w->panels && m <= OWN_DOTS) {
    linear_dots(c, y, x, w, m, add);
  } else {
    kf_onednn_shape shape = {m, w->n, w->k, w->type, w->panels, w->bias != NULL, add};
    kf_onednn_linear(c->onednn, &shape, y, x, w->data, w->bias, &d->error);
  }
}

static void linear(kf_device *d, float *y, const float *x, const kf_weight *w, int64_t m, bool add) {
  multiply(d, y, &(input){.x = x}, w, m, add);
}

static void norm_linear(kf_device *d, float *y, const float *x, const float *norm, float eps, const kf_weight *w, int64_t m) {
  multiply(d, y, &(input){.x = x, .norm = norm, .eps = eps}, w, m, false);
}

static void swiglu_linear(kf_device *d, float *y, const float *gate_up, const kf_weight *w, int64_t m) {
  multiply(d, y, &(input){.x = gate_up, .gated = true}, w, m, true);
}

void kf_cpu_linear_table(kf_device *d) {
  d->pack = pack;
  d->plain = plain;
  d->weight_free = weight_free;
  d->weight_bytes = weight_bytes;
  d->linear = linear;
  d->norm_linear = norm_linear;
  d->swiglu_linear = swiglu_linear;
}
