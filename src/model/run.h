/* Inside of kf_run: scratch memory by slot, and the cos/sin tables of the rotations that the layers use. */
#ifndef KF_MODEL_RUN_H
#define KF_MODEL_RUN_H

#include "model/layer.h"

enum { KF_CHUNK = 512, KF_TABLES = 8 }; /* tokens that pass through a layer's projections at a time; distinct rotations */

/* clang-format off */
typedef enum kf_slot {
  KF_SLOT_NORMED, KF_SLOT_QKV, KF_SLOT_Q, KF_SLOT_Q_A, KF_SLOT_ROW, KF_SLOT_KV_B, KF_SLOT_EXPANDED, KF_SLOT_STORE, KF_SLOT_ROPE,
  KF_SLOT_LATENT, KF_SLOT_CONTEXT, KF_SLOT_OUT, KF_SLOT_GATE_UP, KF_SLOT_PAST, KF_SLOT_INPUT, KF_SLOT_LAST, KF_SLOT_LOGITS,
  KF_SLOTS
} kf_slot;
/* clang-format on */

typedef struct kf_rope_table {
  kf_rope rope;
  int64_t positions, length; /* rows filled; sequence length that the frequencies are for */
  float *cos, *sin;          /* [positions, dim / 2] */
} kf_rope_table;

struct kf_run {
  kf_device *device;
  const kf_config *config;
  kf_latent_form form;
  float *slot[KF_SLOTS];
  size_t capacity[KF_SLOTS];
  kf_rope_table table[KF_TABLES];
  int tables;
  int32_t *position; /* [rows] of the current forward pass */
  int64_t positions;
};

/* At least `count` floats that live until the same slot is asked for more. */
kf_status kf_run_slot(kf_run *r, kf_slot slot, int64_t count, float **out, kf_error *e);
/* cos/sin rows for positions below `length`, for sequences of that length. */
kf_status kf_run_rope(kf_run *r, const kf_rope *rope, int64_t length, const kf_rope_table **out, kf_error *e);

/* What of one span falls into a chunk of rows. */
typedef struct kf_piece {
  const kf_span *span;
  int64_t row, count, past; /* first row in the chunk; tokens; tokens before them */
  int64_t wanted, queries;  /* of how many tokens, the last of the span and of the piece, this layer's output is wanted */
} kf_piece;

/* The first row of the chunk that a piece wants the output of. */
static inline int64_t kf_piece_query(const kf_piece *p) {
  return p->row + p->count - p->queries;
}

/* The chunk's part of the two attentions. h: normed input [m, hidden]; out: [m, heads x d_v]. */
typedef struct kf_chunk {
  kf_run *run;
  const kf_layer *layer;
  int index;
  int64_t m;
  const float *h;
  const int32_t *position;
  const kf_rope_table *table;
  const kf_piece *piece;
  int pieces;
  const kf_watch *watch;
} kf_chunk;
kf_status kf_grouped_forward(const kf_chunk *c, float *out, kf_error *e);
kf_status kf_latent_forward(const kf_chunk *c, float *out, kf_error *e);

#endif
