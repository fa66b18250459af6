/* CARE (arXiv 2603.17946): the latents of a layer by an SVD weighted with the covariance of its input, and ranks that follow the
 * layers' spectra. The SVD of A C^(1/2) at rank r, its whitening undone, is U_r U_r^T A with U_r the leading eigenvectors of
 * A C A^T: the same factoring as joint_latent.h's, with C shrunk and keys and values as they are. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/factor.h"
#include "convert/joint_session.h"

enum { ROPE_DIM, FREQFOLD, SHRINKAGE, RANK_POLICY, STATISTICS };
enum { UNIFORM, DYNAMIC, PROGRESSIVE };

static const char *const automatic[] = {"auto", NULL};
static const char *const policies[] = {"uniform", "dynamic", "progressive", NULL};
static const char *const statistics[] = {"converted", "source", NULL}; /* as kf_joint_statistics */

const kf_key kf_care_keys[] = {
    [ROPE_DIM] = {"rope_dim", KF_TAKES_CHOICE | KF_TAKES_INTEGER, automatic, 2, 65536, "auto"},
    [FREQFOLD] = {"freqfold", KF_TAKES_CHOICE | KF_TAKES_INTEGER, automatic, 1, 65536, "auto"},
    [SHRINKAGE] = {"shrinkage", KF_TAKES_REAL, NULL, 0, 1, "0.01"},
    [RANK_POLICY] = {"rank_policy", KF_TAKES_CHOICE, policies, 0, 0, "uniform"},
    [STATISTICS] = {"statistics", KF_TAKES_CHOICE, statistics, 0, 0, "converted"},
    {NULL, 0, NULL, 0, 0, NULL},
};

kf_status kf_care_resolve(kf_plan *p, kf_error *e) {
  return kf_joint_resolve(p, ROPE_DIM, FREQFOLD, e);
}

/* ---------------------------------------------------------------------------------------------- ranks by the spectra */

/* One branch (keys or values) of all layers. */
typedef struct branch {
  int layers;
  const int *size;             /* [layers] numbers of a spectrum */
  const double *const *energy; /* [layers] descending */
  int *rank;                   /* [layers] */
} branch;

/* CARE-E's worth of one more rank: the part of the residual that it takes, more in early layers, less at high ranks. */
static double gain(const branch *b, int layer, int least) {
  const double *energy = b->energy[layer];
  int rank = b->rank[layer];
  double residual = 0, total = 0;
  for (int i = 0; i < b->size[layer]; i++) {
    total += fmax(energy[i], 0);
    if (i >= rank) residual += fmax(energy[i], 0);
  }
  double horizon = sqrt((b->layers - layer) / ((b->layers + 1) / 2.0));
  return fmax(energy[rank], 0) / fmax(residual, 1e-12 * total) * horizon / sqrt((double)(rank > 1 ? rank : 1) / least);
}

/* Gives `budget` ranks to the layers, one by one to the best; every layer has between `least` and `most`. */
static void allocate(branch *b, int64_t budget, int least, int most) {
  for (int i = 0; i < b->layers; i++) budget -= b->rank[i] = least < b->size[i] ? least : b->size[i];
  while (budget > 0) {
    int best = -1;
    double score = -1;
    for (int i = 0; i < b->layers; i++) {
      if (b->rank[i] >= (most < b->size[i] ? most : b->size[i])) continue;
      double own = gain(b, i, least);
      if (own > score) score = own, best = i;
    }
    if (best < 0) return;
    b->rank[best]++;
    budget--;
  }
}

typedef struct survey {
  kf_arena arena;
  double **key, **value; /* [layers] spectra; NULL until surveyed */
  int *keys, *values;    /* [layers] their sizes */
  double *condition;     /* [layers] log of the condition numbers of W_k and W_v, multiplied */
} survey;

static kf_status measure_spectra(void *user, kf_joint_session *s, int layer, const kf_projections *p, const double *moment,
                                 kf_error *e) {
  survey *v = user;
  kf_joint joint;
  KF_TRY(kf_joint_create(p, moment, moment, &s->settings, s->c->window, &joint, e));
  v->keys[layer] = (int)joint.keys;
  v->values[layer] = (int)(joint.rows - joint.keys);
  v->key[layer] = kf_arena_alloc(&v->arena, (size_t)joint.keys + 1, sizeof(double), e);
  v->value[layer] = kf_arena_alloc(&v->arena, (size_t)(joint.rows - joint.keys), sizeof(double), e);
  kf_status status = v->key[layer] && v->value[layer] ? KF_OK : KF_ERROR_MEMORY;
  if (status == KF_OK) status = kf_joint_spectra(&joint, moment, s->settings.shrinkage, v->key[layer], v->value[layer], e);
  kf_joint_free(&joint);
  return status;
}

static int smaller(int a, int b) {
  return a < b ? a : b;
}

static int most_latents(const kf_joint_session *s, int layer) {
  return kf_joint_most(&s->p->source->layer[layer].attention, s->p->source->hidden, s->settings.rope_dim);
}

/* Keys and values share the budget in halves, as CARE's code does; between a half and twice the uniform rank. */
static kf_status rank_dynamic(kf_joint_session *s, survey *v, kf_error *e) {
  int layers = s->p->source->layers;
  int64_t total = 0;
  for (int i = 0; i < layers; i++) total += s->rank[i];
  int base = (int)(total / layers), least = base / 4 > 1 ? base / 4 : 1;
  KF_TRY(kf_joint_survey(s, measure_spectra, v, e));
  int *value_rank = kf_arena_alloc(&v->arena, (size_t)layers, sizeof *value_rank, e);
  if (!value_rank) return KF_ERROR_MEMORY;
  branch key = {layers, v->keys, (const double *const *)v->key, s->rank},
         value = {layers, v->values, (const double *const *)v->value, value_rank};
  allocate(&key, total / 2, least, base);
  allocate(&value, total - total / 2, least, base);
  for (int i = 0; i < layers; i++) s->rank[i] = smaller(s->rank[i] + value_rank[i], most_latents(s, i));
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- ranks by condition numbers */

static kf_status log_condition(const double *a, int64_t rows, int64_t width, double *out, kf_error *e) {
  kf_basis b;
  KF_TRY(kf_basis_create(a, rows, width, &b, e));
  *out += log(b.energy[0] / fmax(b.energy[b.count - 1], 1e-24 * b.energy[0])) / 2;
  kf_basis_free(&b);
  return KF_OK;
}

/* LoRC's progressive ranks: linear in log prod_{j >= l} kappa(W_k,j) kappa(W_v,j), which is largest in the first layer. The
 * least rank is half the uniform one; the largest follows from the budget. */
static kf_status rank_progressive(kf_joint_session *s, survey *v, kf_error *e) {
  int layers = s->p->source->layers;
  int64_t total = 0, given = 0;
  for (int i = 0; i < layers; i++) {
    kf_projections p;
    KF_TRY(kf_projections_read(s->p->weights, i, &p, e));
    kf_status status = log_condition(p.k, (int64_t)p.a->kv_heads * p.a->d_qk, p.width, &v->condition[i], e);
    if (status == KF_OK) status = log_condition(p.v, (int64_t)p.a->kv_heads * p.a->d_v, p.width, &v->condition[i], e);
    kf_projections_free(&p);
    KF_TRY(status);
    total += s->rank[i];
  }
  double sum = 0, least = (double)total / layers / 2, lowest = v->condition[layers - 1];
  for (int i = layers - 2; i >= 0; i--) v->condition[i] += v->condition[i + 1];
  for (int i = 0; i < layers; i++) sum += v->condition[i] - lowest;
  for (int i = 0; i < layers && sum > 0; i++) {
    int rank = (int)(least + (double)total / 2 * (v->condition[i] - lowest) / sum);
    s->rank[i] = smaller(rank > 1 ? rank : 1, most_latents(s, i));
  }
  for (int i = 0; i < layers; i++) given += s->rank[i];
  for (int i = 0; i < layers && given < total; i++) { /* what rounding and full layers left, to the first that can use it */
    int more = smaller((int)(total - given), most_latents(s, i) - s->rank[i]);
    s->rank[i] += more;
    given += more;
  }
  return KF_OK;
}

static kf_status set_ranks(kf_joint_session *s, int policy, kf_error *e) {
  size_t layers = (size_t)s->p->source->layers;
  survey v = {0};
  if (policy == UNIFORM) return KF_OK;
  v.key = kf_arena_alloc(&v.arena, layers, sizeof *v.key, e);
  v.value = kf_arena_alloc(&v.arena, layers, sizeof *v.value, e);
  v.keys = kf_arena_alloc(&v.arena, layers, sizeof *v.keys, e);
  v.values = kf_arena_alloc(&v.arena, layers, sizeof *v.values, e);
  v.condition = kf_arena_alloc(&v.arena, layers, sizeof *v.condition, e);
  kf_status status = v.key && v.value && v.keys && v.values && v.condition ? KF_OK : KF_ERROR_MEMORY;
  if (status == KF_OK) status = policy == DYNAMIC ? rank_dynamic(s, &v, e) : rank_progressive(s, &v, e);
  kf_arena_free(&v.arena);
  return status;
}

kf_status kf_care_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e) {
  const kf_joint_settings settings = {.rope_dim = (int)p->value[ROPE_DIM].integer,
                                      .freqfold = (int)p->value[FREQFOLD].integer,
                                      .shrinkage = p->value[SHRINKAGE].real};
  kf_joint_session *s;
  KF_TRY(kf_joint_open(p, corpus, &settings, (kf_joint_statistics)p->value[STATISTICS].choice, &s, e));
  kf_status status = set_ranks(s, p->value[RANK_POLICY].choice, e);
  if (status != KF_OK)
    kf_joint_close(s);
  else
    *session = s;
  return status;
}
