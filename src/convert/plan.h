/* What a conversion will do: a method (a row of a table), its settings, and what they come to for one source model. */
#ifndef KF_CONVERT_PLAN_H
#define KF_CONVERT_PLAN_H

#include "convert/corpus_windows.h"
#include "convert/ranks.h"
#include "convert/rope_select.h"
#include "model/model.h"

enum { KF_MAX_KEYS = 16, KF_MAX_TENSORS = 12 };

/* One key of --set: what values it takes. */
enum { KF_TAKES_CHOICE = 1, KF_TAKES_INTEGER = 2, KF_TAKES_REAL = 4, KF_TAKES_TEXT = 8 };
typedef struct kf_key {
  const char *name;
  unsigned takes;
  const char *const *choices; /* NULL-terminated; also the names of the values in the enumerations below, in order */
  double low, high;           /* of a number */
  const char *fallback;       /* as one would write it; NULL: decided from the model */
} kf_key;

typedef struct kf_value {
  bool given;
  const char *text; /* as written, or the fallback; may be NULL */
  int choice;       /* -1: a number was written, or nothing */
  int64_t integer;
  double real;
} kf_value;

typedef struct kf_plan kf_plan;

/* One tensor of a converted layer, by its name below "model.layers.N.self_attn.". */
typedef struct kf_mapped_tensor {
  const char *name;
  int dims;
  int64_t shape[2];
  float *data;
} kf_mapped_tensor;

/* A converted attention layer. */
typedef struct kf_mapped {
  kf_attention_config attention; /* its lists point at the two below */
  int *rope_pairs;
  int32_t *rope_index;
  double *lists; /* room for the factors of attention.rope, may be NULL */
  kf_mapped_tensor tensor[KF_MAX_TENSORS];
  int tensors;
} kf_mapped;
void kf_mapped_free(kf_mapped *m);
void kf_mapped_drop(kf_mapped *m); /* frees the tensors only */
/* Adds a zeroed tensor (columns 0: a vector) and gives its numbers, which m owns; NULL and e filled on failure. */
float *kf_mapped_add(kf_mapped *m, const char *name, int64_t rows, int64_t columns, kf_error *e);

typedef struct kf_method {
  const char *name, *help;
  const char *not_stock; /* what its result has that the graph of stock engines (export) has not; NULL: nothing */
  const kf_key *keys;    /* ends with a key without name; NULL: none */
  /* Settings and model into ranks and dimensions; everything that can be refused before work starts. NULL: layers are
   * copied as they are. */
  kf_status (*resolve)(kf_plan *p, kf_error *e);
  /* Before the first layer, when resolve() set needs_text: what map() wants of calibration text. corpus outlives the session.
   * NULL: the method never looks at text. */
  kf_status (*open)(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e);
  /* One layer, called in ascending order; layers may be left out (kept as they are, or finished by an earlier run). session:
   * open()'s, or NULL. */
  kf_status (*map)(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e);
  /* After the last layer: what was chosen and what came of it, for the recipe. NULL: nothing. */
  kf_status (*record)(void *session, json_t **out, kf_error *e);
  void (*close)(void *session); /* NULL is allowed */
  bool drops_norms;             /* its layers have no q/k norms where the source's have some */
} kf_method;

const kf_method *kf_method_at(int index); /* NULL past the end */

/* --cache: elements per token and layer, or a part of the source's. */
typedef struct kf_budget {
  bool given;
  int64_t elements; /* 0: use percent */
  double percent;
} kf_budget;

struct kf_plan {
  const kf_method *method;
  kf_value value[KF_MAX_KEYS]; /* in the order of method->keys */
  kf_budget budget;
  const kf_convert_options *o;
  bool has_calibration;
  const kf_config *source;
  const kf_weights *weights;
  const kf_hooks *hooks;
  const char *scratch;  /* a directory for files that are removed again */
  uint64_t source_hash; /* of the names, sizes and times of the source's files */
  /* what resolve() fills */
  kf_arena arena;
  bool *convert;      /* [layers] */
  int *rank, *q_rank; /* [layers] latent width; 0: full query, or by energy */
  int nope, rope;     /* x-ecomla: rows of a head */
  int pairs;          /* mha2mla: pairs a KV head */
  int kv_heads;       /* KV heads of a result that stays grouped; 0: it becomes latent */
  kf_rope_policy policy;
  bool needs_text;  /* the method's open() is to be called */
  kf_ranks ranks;   /* from a file; layers 0: none */
  json_t *settings; /* key: resolved value */
};

/* Finds method and settings; no model needed. KF_ERROR_USAGE names the nearest known word. */
kf_status kf_plan_options(const kf_convert_options *o, kf_plan *p, kf_error *e);
/* Runs the method's resolve() over a grouped source. Fills p->settings. */
kf_status kf_plan_resolve(kf_plan *p, const kf_config *source, const kf_weights *weights, const kf_hooks *hooks, kf_error *e);
void kf_plan_free(kf_plan *p);

/* Elements that the budget leaves a layer of the source: N, or P% of its own, rounded down; 50% when none was given. */
int64_t kf_plan_budget(const kf_plan *p, int layer);
/* Reads "all" or "0,2,4-7" into p->convert. */
kf_status kf_plan_layers(kf_plan *p, const char *text, kf_error *e);
/* Records a resolved value: one number when all converted layers share it, else a list with null for the others. */
kf_status kf_plan_record(kf_plan *p, int key, const int *per_layer, kf_error *e);
/* Whether a source layer rotates its queries and keys (SmolLM3 has layers that do not). */
bool kf_plan_rotates(const kf_plan *p, int layer);

/* The rows of the table. */
extern const kf_key kf_mha2mla_keys[], kf_xecomla_keys[], kf_fold_keys[];
extern const kf_key kf_transmla_keys[], kf_care_keys[], kf_kv_heads_keys[];
kf_status kf_fold_resolve(kf_plan *p, kf_error *e);
kf_status kf_fold_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e);
kf_status kf_fold_map(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e);
kf_status kf_fold_record(void *session, json_t **out, kf_error *e);
void kf_fold_close(void *session);
kf_status kf_mha2mla_resolve(kf_plan *p, kf_error *e);
kf_status kf_mha2mla_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e);
kf_status kf_mha2mla_map(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e);
void kf_mha2mla_close(void *session);
kf_status kf_xecomla_resolve(kf_plan *p, kf_error *e);
kf_status kf_xecomla_map(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e);
kf_status kf_transmla_resolve(kf_plan *p, kf_error *e);
kf_status kf_transmla_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e);
kf_status kf_care_resolve(kf_plan *p, kf_error *e);
kf_status kf_care_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e);
kf_status kf_joint_convert(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e); /* both */
kf_status kf_joint_record(void *session, json_t **out, kf_error *e);
void kf_joint_close(void *session);
kf_status kf_kv_heads_resolve(kf_plan *p, kf_error *e);
kf_status kf_kv_heads_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e);
kf_status kf_kv_heads_map(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e);
void kf_kv_heads_close(void *session);

#endif
