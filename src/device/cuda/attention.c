/* Grouped and latent attention as their one kernel sees them; sequences and lists of pages are sent in one parcel. */
#include "device/cuda/cuda.h"

/* What both kinds of sequence have. */
typedef struct sequence {
  const float *q, *q_rope;
  int64_t q_stride;
  float *out;
  const kf_rows *rows;
  int64_t m, past;
} sequence;

/* shape NULL: of a list of kf_attention; else of kf_latent_attention. */
static sequence sequence_at(const kf_latent_shape *shape, const void *list, int i) {
  if (!shape) {
    const kf_attention *s = (const kf_attention *)list + i;
    return (sequence){s->q, NULL, s->q_stride, s->out, &s->rows, s->m, s->past};
  }
  const kf_latent_attention *s = (const kf_latent_attention *)list + i;
  return (sequence){s->q_latent, s->q_rope, (int64_t)shape->heads * shape->rank, s->out, &s->rows, s->m, s->past};
}

static size_t page_bytes(const sequence *s) {
  return (size_t)((s->past + s->m + s->rows->page_tokens - 1) / s->rows->page_tokens) * sizeof *s->rows->pages;
}

static kf_cuda_sequence put_sequence(kf_cuda_parcel *parcel, const sequence *s, int64_t heads) {
  return (kf_cuda_sequence){.q = s->q,
                            .q_stride = s->q_stride,
                            .q_rope = s->q_rope,
                            .out = s->out,
                            .rows = {.pages = kf_cuda_put(parcel, s->rows->pages, page_bytes(s)),
                                     .page_tokens = s->rows->page_tokens,
                                     .columns = s->rows->columns,
                                     .bf16 = s->rows->dtype == KF_BF16},
                            .m = s->m,
                            .past = s->past,
                            .tiles = kf_cuda_tiles(s->m * heads)};
}

/* Sequences without queries are left out. */
static void run(kf_cuda *c, kf_cuda_attention *job, const kf_latent_shape *shape, const void *list, int count) {
  size_t rope_bytes = shape ? (size_t)shape->kv_heads * sizeof(int) : 0;
  size_t list_room = kf_cuda_room((size_t)count * sizeof(kf_cuda_sequence)), bytes = list_room + 2 * kf_cuda_room(rope_bytes);
  for (int i = 0; i < count; i++) {
    sequence s = sequence_at(shape, list, i);
    if (s.m > 0) bytes += kf_cuda_room(page_bytes(&s));
  }
  kf_cuda_parcel parcel;
  if (!kf_cuda_parcel_open(c, bytes, &parcel)) return;
  kf_cuda_sequence *sent = (kf_cuda_sequence *)parcel.host;
  job->sequences = (const kf_cuda_sequence *)parcel.gpu;
  parcel.used = list_room;
  for (int i = 0; i < count; i++) {
    sequence s = sequence_at(shape, list, i);
    if (s.m < 1) continue;
    *sent = put_sequence(&parcel, &s, job->heads);
    job->tiles += sent++->tiles;
  }
  if (!job->tiles) return;
  if (shape) {
    job->rope_offset = kf_cuda_put(&parcel, shape->rope_offset, rope_bytes);
    job->rope_width = kf_cuda_put(&parcel, shape->rope_width, rope_bytes);
  }
  if (kf_cuda_send(c, &parcel)) kf_cuda_ok(c, kf_cuda_launch_attention(c->stream, job));
}

static void attention(kf_device *d, const kf_attention_shape *shape, const kf_attention *sequences, int count) {
  kf_cuda_attention job = {.groups = shape->kv_heads,
                           .heads = shape->heads / shape->kv_heads,
                           .d_k = shape->d_qk,
                           .d_v = shape->d_v,
                           .q_columns = shape->d_qk,
                           .value_column = (int64_t)shape->kv_heads * shape->d_qk,
                           .window = shape->window,
                           .scale = shape->scale,
                           .inverse_rms = -1};
  run(kf_cuda_of(d), &job, NULL, sequences, count);
}

static void latent_attention(kf_device *d, const kf_latent_shape *shape, const kf_latent_attention *sequences, int count) {
  int64_t columns = shape->rank;
  for (int g = 0; g < shape->kv_heads; g++) {
    int64_t end = (int64_t)shape->rope_offset[g] + shape->rope_width[g];
    if (end > columns) columns = end;
  }
  kf_cuda_attention job = {.groups = 1,
                           .heads = shape->heads,
                           .d_k = columns,
                           .d_v = shape->rank,
                           .q_columns = shape->rank,
                           .window = shape->window,
                           .scale = shape->scale,
                           .kv_heads = shape->kv_heads,
                           .rope_stride = shape->rope_stride,
                           .inverse_rms = shape->inverse_rms};
  run(kf_cuda_of(d), &job, shape, sequences, count);
}

void kf_cuda_attention_table(kf_device *d) {
  d->attention = attention;
  d->latent_attention = latent_attention;
}
