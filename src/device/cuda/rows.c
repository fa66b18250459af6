/* Operations on rows of activations, caches and logits: what is left to do on the CPU before a launch. */
#include "device/cuda/cuda.h"

static void rmsnorm(kf_device *d, float *y, const float *x, const float *w, int64_t m, int64_t n, float eps) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_norm job = {.y = y, .x = x, .w = w, .m = m, .stride = n, .n = n, .heads = 1, .w_heads = 1, .eps = eps};
  if (!kf_cuda_idle(d, m * n)) kf_cuda_ok(c, kf_cuda_launch_norm(c->stream, &job));
}

static void head_norm(kf_device *d, float *x, int64_t m, int64_t stride, int heads, int n, const float *w, int w_heads,
                      float eps) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_norm job = {.y = x, .x = x, .w = w, .m = m, .stride = stride, .n = n, .heads = heads, .w_heads = w_heads, .eps = eps};
  if (!kf_cuda_idle(d, m * heads * n)) kf_cuda_ok(c, kf_cuda_launch_norm(c->stream, &job));
}

static void rope(kf_device *d, float *x, int64_t m, int64_t stride, const kf_rope_block *blocks, int block_count,
                 const float *cos, const float *sin, int table_pairs, const int32_t *position, bool reverse) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_parcel parcel;
  size_t indices = 0;
  for (int b = 0; b < block_count; b++) indices += blocks[b].index ? (size_t)blocks[b].pairs : 0;
  size_t list_bytes = (size_t)block_count * sizeof(kf_cuda_block), index_bytes = indices * sizeof(int32_t);
  if (kf_cuda_idle(d, m * block_count)) return;
  if (!kf_cuda_parcel_open(c, kf_cuda_room(list_bytes) + kf_cuda_room(index_bytes), &parcel)) return;
  kf_cuda_block *list = (kf_cuda_block *)parcel.host;
  int32_t *index = (int32_t *)(parcel.host + kf_cuda_room(list_bytes));
  int at = 0;
  for (int b = 0; b < block_count; b++) {
    list[b] = (kf_cuda_block){blocks[b].offset, blocks[b].pairs, blocks[b].index ? at : -1};
    for (int j = 0; blocks[b].index && j < blocks[b].pairs; j++) index[at++] = blocks[b].index[j];
  }
  parcel.used = kf_cuda_room(list_bytes) + kf_cuda_room(index_bytes);
  kf_cuda_rope job = {.x = x,
                      .m = m,
                      .stride = stride,
                      .blocks = (const kf_cuda_block *)parcel.gpu,
                      .block_count = block_count,
                      .table_pairs = table_pairs,
                      .indices = (const int32_t *)(parcel.gpu + kf_cuda_room(list_bytes)),
                      .position = position,
                      .cos = cos,
                      .sin = sin,
                      .reverse = reverse};
  if (kf_cuda_send(c, &parcel)) kf_cuda_ok(c, kf_cuda_launch_rope(c->stream, &job));
}

/* Sends the list of pages. */
static bool make_slice(kf_cuda *c, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n, kf_cuda_slice *out) {
  kf_cuda_parcel parcel;
  if (kf_cuda_idle(&c->device, m * n)) return false;
  int64_t first = at / rows->page_tokens;
  size_t bytes = (size_t)((at + m - 1) / rows->page_tokens - first + 1) * sizeof *rows->pages;
  if (!kf_cuda_parcel_open(c, kf_cuda_room(bytes), &parcel)) return false;
  *out = (kf_cuda_slice){.rows = {.pages = kf_cuda_put(&parcel, rows->pages + first, bytes),
                                  .first_page = first,
                                  .page_tokens = rows->page_tokens,
                                  .columns = rows->columns,
                                  .bf16 = rows->dtype == KF_BF16},
                         .at = at,
                         .m = m,
                         .column = column,
                         .n = n};
  return kf_cuda_send(c, &parcel);
}

static void store(kf_device *d, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n, const float *x,
                  int64_t stride) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_slice job;
  if (!make_slice(c, rows, at, m, column, n, &job)) return;
  job.x = (float *)(uintptr_t)x;
  job.stride = stride;
  kf_cuda_ok(c, kf_cuda_launch_store(c->stream, &job));
}

static void fetch(kf_device *d, float *y, int64_t stride, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_slice job;
  if (!make_slice(c, rows, at, m, column, n, &job)) return;
  job.x = y;
  job.stride = stride;
  kf_cuda_ok(c, kf_cuda_launch_fetch(c->stream, &job));
}

static void cross_entropy(kf_device *d, const float *logits, const int32_t *target, int64_t m, int64_t v, double *nll,
                          int32_t *best) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_loss job = {.logits = logits, .target = target, .m = m, .v = v, .nll = nll, .best = best};
  if (!kf_cuda_idle(d, m * v)) kf_cuda_ok(c, kf_cuda_launch_cross_entropy(c->stream, &job));
}

static void divergence(kf_device *d, const float *reference, const float *logits, int64_t m, int64_t v, double *kl,
                       double *difference) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_loss job = {.reference = reference, .logits = logits, .m = m, .v = v, .kl = kl, .difference = difference};
  if (!kf_cuda_idle(d, m * v)) kf_cuda_ok(c, kf_cuda_launch_divergence(c->stream, &job));
}

static void copy(kf_device *d, float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t m, int64_t n, bool add) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_copy job = {y, x, y_stride, x_stride, m, n, add};
  if (!kf_cuda_idle(d, m * n)) kf_cuda_ok(c, kf_cuda_launch_copy(c->stream, &job));
}

static void zero(kf_device *d, float *x, int64_t n) {
  kf_cuda *c = kf_cuda_of(d);
  if (!kf_cuda_idle(d, n)) kf_cuda_ok(c, cudaMemsetAsync(x, 0, (size_t)n * sizeof *x, c->stream));
}

void kf_cuda_rows_table(kf_device *d) {
  d->copy = copy;
  d->zero = zero;
  d->rmsnorm = rmsnorm;
  d->head_norm = head_norm;
  d->rope = rope;
  d->store = store;
  d->fetch = fetch;
  d->cross_entropy = cross_entropy;
  d->divergence = divergence;
}
