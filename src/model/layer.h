/* One Transformer layer: its packed weights, and its forward pass over any number of sequences. */
#ifndef KF_MODEL_LAYER_H
#define KF_MODEL_LAYER_H

#include "device/device.h"
#include "model/cache.h"
#include "model/weights.h"

typedef struct kf_layer {
  const kf_layer_config *config;
  float *input_norm, *post_norm; /* [hidden]; vectors are the device's memory */
  /* [1 or kv_heads, d_qk] or NULL; k_norm of a latent layer: one row a KV head (a shared rope key takes row 0) */
  float *q_norm, *k_norm;
  float *q_a_norm, *kv_a_norm;               /* [q_rank], [rank] or NULL */
  kf_weight *q;                              /* grouped: q, k, v rows stacked; latent: q (or q_b) */
  kf_weight *q_a, *kv_a, *kv_b, *kv_b_plain; /* latent */
  float *kv_b_bias;                          /* [rows of kv_b] or NULL */
  kf_head_rows *key_rows, *value_rows;       /* latent: [kv_heads] rows of kv_b */
  kf_weight *o, *gate_up, *down;
} kf_layer;

kf_status kf_layer_load(const kf_weights *w, int index, kf_device *d, kf_layer *out, kf_error *e);
void kf_layer_free(kf_layer *l, kf_device *d);
/* Fills key_rows and value_rows of a latent layer from its configuration. */
kf_status kf_layer_head_rows(kf_layer *l, kf_error *e);
int64_t kf_layer_weight_bytes(const kf_layer *l, const kf_device *d); /* read for one token */

/* Which tokens a forward pass handles: those of sequence i are rows offset[i] .. offset[i] + count[i] of x. */
typedef struct kf_span {
  kf_sequence *sequence; /* its cache; rows are appended by the layers, its length is advanced by the caller at the end */
  int64_t offset, count;
  int64_t wanted; /* of how many last tokens the caller needs the last layer's output; 0: of all */
} kf_span;

typedef enum kf_latent_form { KF_FORM_AUTO, KF_FORM_EXPANDED, KF_FORM_ABSORBED } kf_latent_form;

/* Work space that layers share: scratch memory, cos/sin tables. */
typedef struct kf_run kf_run;
kf_status kf_run_create(kf_device *d, const kf_config *c, kf_run **out, kf_error *e);
void kf_run_free(kf_run *r);
void kf_run_set_form(kf_run *r, kf_latent_form form); /* AUTO: absorbed when a sequence has few new tokens */

/* Watches a layer at work (calibration); either function may be NULL.
 * seen: grouped layers; input [m, hidden] after the input norm; q: [m, heads, d_qk], k: [m, kv_heads, d_qk] and, right behind
 * each row's keys, its values, before norms and rotation, biases included.
 * attended: before the attention's output joins the residual stream x [m, hidden]; out [m, heads, d_v], before o_proj. */
typedef struct kf_watch {
  void (*seen)(void *user, int layer, int64_t m, const float *input, const float *q, int64_t q_stride, const float *k,
               int64_t k_stride);
  void (*attended)(void *user, int layer, int64_t m, const float *x, const float *out);
  void *user;
} kf_watch;

/* x [tokens, hidden], the device's memory, is replaced by the layer's output (in the last layer: at the wanted tokens), complete
 * on return. watch may be NULL. */
kf_status kf_layer_forward(kf_run *r, const kf_layer *l, int index, float *x, const kf_span *spans, int count,
                           const kf_watch *watch, kf_error *e);

#endif
