/* A model as training sees it: forward over whole sequences and backward to all parameters. Activations are kept at the inputs
 * of the layers, with the attention's output and log-sum-exp; the rest of a layer is computed again when its gradient is. */
#ifndef KF_TRAIN_NETWORK_H
#define KF_TRAIN_NETWORK_H

#include "train/parameters.h"

/* A matrix and a vector of the parameters with their gradients; dw NULL: frozen. */
typedef struct kf_trained_matrix {
  kf_matrix matrix;
  float *dw, *dbias;
} kf_trained_matrix;
typedef struct kf_trained_vector {
  const float *w; /* NULL: the layer has none */
  float *dw;
} kf_trained_vector;

typedef struct kf_block {
  const kf_layer_config *config;
  kf_trained_vector input_norm, post_norm, q_norm, k_norm, q_a_norm, kv_a_norm;
  kf_trained_matrix q; /* grouped: q, k and v; latent: q, or q_b */
  kf_trained_matrix q_a, kv_a, kv_b, o, gate_up, down;
} kf_block;

/* Tokens of a step: sequences one after another, each attending to itself alone, from position 0 on. */
typedef struct kf_extent {
  int64_t first, count;
} kf_extent;
typedef struct kf_tokens {
  const int32_t *ids; /* [count] */
  int64_t count;
  const kf_extent *sequence;
  int sequences;
} kf_tokens;

typedef struct kf_network kf_network;

/* Errors: a device that does not train, a layer of a kind that is not trained (DeepSeek's interleaved rope rows, a bias on some
 * of q, k and v only). Borrows all it is given. */
kf_status kf_network_create(const kf_config *c, kf_device *d, kf_parameters *p, kf_network **out, kf_error *e);
void kf_network_free(kf_network *n);
/* After kf_parameters_choose(): which gradients are wanted. */
kf_status kf_network_bind(kf_network *n, kf_error *e);

/* Hidden states after the last layer, before the final norm: [tokens, hidden], the network's own until the next call. */
kf_status kf_network_forward(kf_network *n, const kf_tokens *t, float **hidden, kf_error *e);
/* Backward of that forward, from the gradient of its hidden states (overwritten). */
kf_status kf_network_backward(kf_network *n, const kf_tokens *t, float *d_hidden, kf_error *e);

/* One layer alone, over x [tokens, hidden] in place; `layer` keeps what its backward needs. */
kf_status kf_network_layer(kf_network *n, int layer, const kf_tokens *t, float *x, kf_error *e);
/* Of the last kf_network_layer(): the residual stream between attention and MLP, [tokens, hidden]. */
void kf_network_middle(kf_network *n, int layer, const kf_tokens *t, float *middle);
/* d_middle: a gradient of the middle that comes on top; NULL: none. */
kf_status kf_network_layer_backward(kf_network *n, int layer, const kf_tokens *t, float *dx, const float *d_middle, kf_error *e);

/* Final norm, head and loss of rows of hidden states, a chunk of rows at a time so that logits of the whole batch never exist.
 * hidden [rows, hidden] becomes its gradient; weight, target and the two results are [rows]. teacher: writes the teacher's
 * logits of rows first .. first + m to [m, vocabulary], those of the student given; NULL when the loss has none. */
typedef kf_status (*kf_teacher_logits)(void *user, int64_t first, int64_t m, const float *student, float *logits, kf_error *e);
kf_status kf_network_loss(kf_network *n, const kf_softmax_loss *l, float *hidden, int64_t rows, const int32_t *target,
                          const float *weight, kf_teacher_logits teacher, void *user, double *nll, double *divergence,
                          kf_error *e);
/* nll [rows] of targets under the model, in nats; hidden is left as it is. */
kf_status kf_network_score(kf_network *n, const float *hidden, int64_t rows, const int32_t *target, double *nll, kf_error *e);

#endif
