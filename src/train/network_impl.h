/* Inside of kf_network, shared by its files. */
#ifndef KF_TRAIN_NETWORK_IMPL_H
#define KF_TRAIN_NETWORK_IMPL_H

#include "model/run.h"
#include "train/network.h"

/* Work space that layers share. D_: gradients. */
/* clang-format off */
typedef enum kf_work {
  KF_WORK_X, KF_WORK_H, KF_WORK_MIDDLE, KF_WORK_MLP, KF_WORK_GATE_UP, KF_WORK_ACT, KF_WORK_QKV, KF_WORK_RAW,
  KF_WORK_LOW_RAW, KF_WORK_LOW, KF_WORK_Q, KF_WORK_Q_RAW, KF_WORK_ROW, KF_WORK_LATENT, KF_WORK_KV_B, KF_WORK_KV, KF_WORK_KV_RAW,
  KF_WORK_K_NORM, KF_WORK_D_H, KF_WORK_D_ACT, KF_WORK_D_OUT, KF_WORK_D_QKV, KF_WORK_D_Q, KF_WORK_D_LOW, KF_WORK_D_ROW,
  KF_WORK_D_LATENT, KF_WORK_D_KV_B, KF_WORK_D_KV, KF_WORK_D_K_NORM, KF_WORK_LOGITS, KF_WORK_TEACHER, KF_WORKS
} kf_work;
/* clang-format on */

typedef struct kf_kept {
  float *data;
  int64_t capacity;
} kf_kept;

/* What a layer's backward starts from: its input [m, hidden], and out [m, heads, d_v] and lse [m, heads] of its attention. */
typedef struct kf_saved {
  kf_kept x, out, lse;
} kf_saved;

struct kf_network {
  kf_device *device;
  const kf_config *config;
  kf_parameters *parameters;
  kf_run *run; /* cos/sin tables */
  kf_block *block;
  kf_saved *saved; /* [layers] */
  kf_trained_matrix embedding, head;
  kf_trained_vector norm;
  kf_kept work[KF_WORKS];
  int32_t *position; /* [tokens] of the sequences `placed` */
  kf_extent *placed;
  int sequences;
};

/* q, k and v of all tokens, rotated, as kf_attention_pass takes them. */
typedef struct kf_projected {
  float *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
} kf_projected;

/* At least count floats of the device's memory. */
kf_status kf_work_take(kf_network *n, kf_work slot, int64_t count, float **out, kf_error *e);
/* Rotates (or, backward, rotates back) columns of all tokens' rows. */
kf_status kf_network_rotate(kf_network *n, const kf_tokens *t, const kf_attention_config *a, float *x, int64_t stride,
                            const kf_rope_block *blocks, int count, bool backward, kf_error *e);

/* h [m, hidden]: the normed input; backward gives its gradient dh from d (of the shape that `project` gave). */
kf_status kf_project(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, kf_projected *out, kf_error *e);
/* Room for the gradients of what kf_project() gives. */
kf_status kf_project_room(kf_network *n, const kf_block *b, int64_t m, kf_projected *out, kf_error *e);
kf_status kf_project_backward(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, const kf_projected *d,
                              float *dh, kf_error *e);

#endif
