/* A converted model as stock engines' DeepSeek graph wants it: one geometry for all layers, and each of its tensors in f32.
 *
 * That graph always normalises the latents c. The norm is neutralised: with the latent rows of kv_a scaled by sqrt(eps) / w and a
 * norm weight of w, mean(c^2) is far below eps and the norm gives c back, with a relative error of mean(c^2) / 2 w^2. */
#ifndef KF_EXPORT_STOCK_H
#define KF_EXPORT_STOCK_H

#include "model/weights.h"

typedef enum kf_stock_kind {
  KF_STOCK_EMBEDDING,
  KF_STOCK_NORM,
  KF_STOCK_HEAD,
  KF_STOCK_INPUT_NORM,
  KF_STOCK_Q,
  KF_STOCK_KV_A,
  KF_STOCK_KV_A_NORM,
  KF_STOCK_KV_B, /* Hugging Face: [heads (nope + v), rank] per head keys, then values */
  KF_STOCK_K_B,
  KF_STOCK_V_B, /* GGUF: [heads, rank, nope], the keys' rows transposed; [heads, v, rank] */
  KF_STOCK_O,
  KF_STOCK_POST_NORM,
  KF_STOCK_GATE,
  KF_STOCK_UP,
  KF_STOCK_DOWN,
} kf_stock_kind;

/* R and its inverse, [rank, rank]: the target's latents are R c (stock_basis.h). */
typedef struct kf_stock_basis {
  double *to, *from;
} kf_stock_basis;

typedef struct kf_stock {
  const kf_config *config;
  const kf_weights *weights;
  bool gguf;          /* names and tensors of a GGUF, else of Hugging Face */
  bool head;          /* the head is a tensor of its own */
  int nope, v;        /* widths of every head */
  int rank;           /* the largest of the layers or the padded one; what is missing is filled up with zeros */
  kf_rope rope;       /* the target's table, over as many numbers as the rope key has */
  int stride, spread; /* slot of that table = pair of the source's / stride * spread */
  int last;           /* the last of the source's pairs that a layer rotates */
  double score_gain;  /* of scores in the target, besides (nope + rope)^-1/2 */
  double rope_gain;   /* the scaling's factor on cosine and sine, squared: the target's has none */
  double eps;         /* of every norm in the target */
  double stream;      /* the residual stream is scaled by this, sqrt(eps / the source's): all norms give what they gave */
  /* [layers]; NULL: the model's own */
  kf_stock_basis *basis;
} kf_stock;

typedef struct kf_stock_target {
  bool gguf;
  double eps; /* 0: the source's */
  int pad;    /* latents, with a rope key of 64; 0: as narrow as the model is */
  const kf_hooks *hooks;
} kf_stock_target;

/* Errors: what the graph cannot express of a model that is still to be converted, by whatever method that leaves, or not, its q/k
 * norms. */
kf_status kf_stock_check_source(const char *path, const kf_config *c, bool norms_stay, bool gguf, kf_error *e);

/* Errors: what the graph cannot express, and which target can. */
kf_status kf_stock_plan(const char *path, const kf_config *c, const kf_weights *w, const kf_stock_target *t, kf_stock *out,
                        kf_error *e);

typedef struct kf_stock_tensor {
  kf_stock_kind kind;
  int layer; /* -1: none */
  char name[96];
  int dims;
  int64_t shape[3]; /* row-major */
} kf_stock_tensor;

/* Visits every tensor of the target, in its order. */
typedef kf_status (*kf_stock_visit)(void *user, const kf_stock_tensor *t, kf_error *e);
kf_status kf_stock_each(const kf_stock *s, kf_stock_visit visit, void *user, kf_error *e);
/* The converted model's name of a tensor that is in the target as it is; NULL: it is made, or scaled. */
const char *kf_stock_unchanged(const kf_stock *s, const kf_stock_tensor *t, char name[96]);
/* A layer's full query [heads d_qk, hidden], a low-rank one multiplied out; freed with free(). */
kf_status kf_stock_query(const kf_stock *s, int layer, float **out, kf_error *e);
/* A tensor's numbers, freed with free(). */
kf_status kf_stock_read(const kf_stock *s, const kf_stock_tensor *t, float **out, kf_error *e);

#endif
