/* fold: refits of a mapped layer against the source. Both streams go from layer to layer, so that a layer makes up for part of
 * what the layers before it did to the stream. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/fold.h"
#include "convert/query_refit.h"
#include "linalg/linalg.h"

static const double ridges[] = {1e-3, 1e-2, 1e-1, 1}; /* of the output projection's refit, of the mean of the diagonal */

typedef struct target {
  float *x;
  int64_t hidden;
} target; /* [window, hidden] the residual before the attention joins, then its outputs */

static void keep_window(void *user, int layer, int64_t m, const float *x, const float *out) {
  (void)layer;
  target *t = user;
  memcpy(t[0].x, x, (size_t)(m * t[0].hidden) * sizeof *x);
  memcpy(t[1].x, out, (size_t)(m * t[1].hidden) * sizeof *out);
}

typedef struct normal {
  int64_t wide, d;      /* heads x d_v, hidden */
  double *gram, *cross; /* [wide, wide] Phi^T Phi; [wide, d] Phi^T (Y - Phi W_o^T) */
  double square;        /* |Y - Phi W_o^T|^2 */
} normal;

/* Adds one window. o: [d, wide]; memory: f32 work space. */
static void add_normal(normal *n, int64_t m, const float *o, const target *teacher, const target *student, float *target_rows,
                       float *own, float *gram, float *cross) {
  kf_gemm_f32(false, true, m, n->d, n->wide, teacher[1].x, o, target_rows);
  kf_gemm_f32(false, true, m, n->d, n->wide, student[1].x, o, own);
  for (int64_t i = 0; i < m * n->d; i++) {
    target_rows[i] += teacher[0].x[i] - student[0].x[i] - own[i];
    n->square += (double)target_rows[i] * target_rows[i];
  }
  kf_gemm_f32(true, false, n->wide, n->wide, m, student[1].x, student[1].x, gram);
  kf_gemm_f32(true, false, n->wide, n->d, m, student[1].x, target_rows, cross);
  for (int64_t i = 0; i < n->wide * n->wide; i++) n->gram[i] += gram[i];
  for (int64_t i = 0; i < n->wide * n->d; i++) n->cross[i] += cross[i];
}

/* Squared error that a change D^T [d, wide] of the projection adds to that of n's windows: tr D^T (G D - 2 C). */
static double added_error(const normal *n, const double *change, double *through) {
  double sum = 0;
  kf_gemm(false, false, n->wide, n->d, n->wide, 1, n->gram, change, 0, through);
  for (int64_t i = 0; i < n->wide * n->d; i++) sum += change[i] * (through[i] - 2 * n->cross[i]);
  return sum;
}

/* The change that the windows fitted on ask for, at the ridge that serves the held-out windows best; zero when none does. */
static kf_status solve_refit(const normal *fit, const normal *held, double *best, double *error_left, kf_arena *arena,
                             kf_error *e) {
  int64_t wide = fit->wide, d = fit->d;
  double *gram = kf_arena_alloc(arena, (size_t)(wide * wide), sizeof *gram, e),
         *change = kf_arena_alloc(arena, (size_t)(wide * d), sizeof *change, e);
  double *through = kf_arena_alloc(arena, (size_t)(wide * d), sizeof *through, e), trace = 0, least = 0;
  if (!gram || !change || !through) return KF_ERROR_MEMORY;
  for (int64_t i = 0; i < wide; i++) trace += fit->gram[i * wide + i];
  for (size_t r = 0; r < sizeof ridges / sizeof *ridges; r++) {
    memcpy(gram, fit->gram, (size_t)(wide * wide) * sizeof *gram);
    memcpy(change, fit->cross, (size_t)(wide * d) * sizeof *change);
    for (int64_t i = 0; i < wide; i++) gram[i * wide + i] += ridges[r] * trace / (double)wide;
    KF_TRY(kf_solve_positive(gram, wide, d, change, e));
    double error = added_error(held, change, through);
    if (!(error < least)) continue;
    least = error;
    memcpy(best, change, (size_t)(wide * d) * sizeof *best);
  }
  *error_left = held->square + least;
  return KF_OK;
}

enum { TRIALS = 2 };

/* Layers that differ in their queries alone, and what the output projection's refit makes of each. */
typedef struct trials {
  int count;
  kf_layer layer[TRIALS];
  normal n[TRIALS][2];    /* fitted on, held out */
  double *change[TRIALS]; /* [wide, d] */
  kf_arena arena;
} trials;

static kf_status make_room(trials *t, int64_t wide, int64_t d, kf_error *e) {
  for (int i = 0; i < t->count; i++) {
    if (!(t->change[i] = kf_arena_alloc(&t->arena, (size_t)(wide * d), sizeof(double), e))) return KF_ERROR_MEMORY;
    for (int k = 0; k < 2; k++) {
      normal *n = &t->n[i][k];
      *n = (normal){.wide = wide, .d = d};
      n->gram = kf_arena_alloc(&t->arena, (size_t)(wide * wide), sizeof(double), e);
      n->cross = kf_arena_alloc(&t->arena, (size_t)(wide * d), sizeof(double), e);
      if (!n->gram || !n->cross) return KF_ERROR_MEMORY;
    }
  }
  return KF_OK;
}

/* Runs all windows through the source's layer, whose stream goes on, and through every trial, whose stream does not. */
static kf_status gather_normals(kf_fold *f, int index, const kf_fold_source *source, const kf_layer *teacher, trials *t,
                                kf_error *e) {
  int64_t d = f->config->hidden, wide = (int64_t)source->a->heads * source->a->d_v, m = f->all.window;
  float *memory = kf_arena_alloc(&t->arena, (size_t)(m * (5 * d + 2 * wide) + wide * (wide + d)), sizeof *memory, e);
  if (!memory) return KF_ERROR_MEMORY;
  target theirs[2] = {{memory, d}, {memory + m * d, wide}},
         ours[2] = {{memory + m * (d + wide), d}, {memory + m * (2 * d + wide), wide}};
  float *rows = memory + 2 * m * (d + wide), *own = rows + m * d, *keep = own + m * d, *gram = keep + m * d,
        *cross = gram + wide * wide;
  for (int w = 0; w < f->all.windows; w++) {
    kf_stream one = f->all, mine = f->converted;
    one.windows = mine.windows = 1;
    one.x = f->all.x + w * m * d;
    mine.x = keep;
    KF_TRY(kf_stream_forward(f->device, f->run, teacher, index, &one, &(kf_watch){.attended = keep_window, .user = theirs}, e));
    for (int i = 0; i < t->count; i++) {
      memcpy(keep, f->converted.x + w * m * d, (size_t)(m * d) * sizeof *keep);
      KF_TRY(kf_stream_forward(f->device, f->run, &t->layer[i], index, &mine, &(kf_watch){.attended = keep_window, .user = ours},
                               e));
      add_normal(&t->n[i][w >= f->fit.windows], m, source->o, theirs, ours, rows, own, gram, cross);
    }
  }
  return KF_OK;
}

/* W_o' = W_o + (Y - Phi W_o^T)^T Phi (Phi^T Phi + ridge)^-1: the student's attention makes up for the drift of its stream too.
 * *best: the trial that leaves the smallest error on the held-out windows; its projection goes into `out`. */
static kf_status refit_output(kf_fold *f, int index, const kf_fold_source *source, const kf_layer *teacher, trials *t,
                              kf_mapped *out, int *best, kf_error *e) {
  int64_t d = f->config->hidden, wide = (int64_t)source->a->heads * source->a->d_v;
  double left[TRIALS];
  KF_TRY(make_room(t, wide, d, e));
  KF_TRY(gather_normals(f, index, source, teacher, t, e));
  *best = 0;
  for (int i = 0; i < t->count; i++) {
    KF_TRY(solve_refit(&t->n[i][0], &t->n[i][1], t->change[i], &left[i], &t->arena, e));
    if (left[i] < left[*best]) *best = i;
  }
  float *o = kf_mapped_add(out, "o_proj.weight", d, wide, e);
  if (!o) return KF_ERROR_MEMORY;
  for (int64_t i = 0; i < d; i++)
    for (int64_t j = 0; j < wide; j++) o[i * wide + j] = (float)(source->o[i * wide + j] + t->change[*best][j * d + i]);
  float *bias = source->o_bias ? kf_mapped_add(out, "o_proj.bias", d, 0, e) : NULL;
  if (source->o_bias && !bias) return KF_ERROR_MEMORY;
  if (bias) memcpy(bias, source->o_bias, (size_t)d * sizeof *bias);
  return KF_OK;
}

/* to [rows, inputs] of all windows: a layer's normed input, and what stands for its biases. */
static kf_status normed_inputs(const kf_fold *f, const kf_fold_source *source, const kf_layer *teacher, const float *x, float *to,
                               kf_error *e) {
  int64_t rows = f->all.windows * f->all.window, d = source->hidden, inputs = source->inputs;
  f->device->rmsnorm(f->device, to, x, teacher->input_norm, rows, d, f->config->eps);
  for (int64_t t = rows - 1; inputs > d && t >= 0; t--) {
    memmove(to + t * inputs, to + t * d, (size_t)d * sizeof *to);
    to[t * inputs + d] = 1;
  }
  return kf_device_check(f->device, e);
}

static kf_status refit_queries(kf_fold *f, const kf_fold_source *source, const kf_layer *teacher, kf_mapped *out, kf_error *e) {
  int64_t rows = f->all.windows * f->all.window, d = source->inputs;
  kf_attention_probe probe = {0};
  float *normed;
  KF_NEW(normed, 2 * rows * d, e);
  kf_refit_windows x = {f->all.windows, f->fit.windows, f->all.window, normed, normed + rows * d};
  kf_status s = normed_inputs(f, source, teacher, f->all.x, normed, e);
  if (s == KF_OK) s = normed_inputs(f, source, teacher, f->converted.x, normed + rows * d, e);
  if (s == KF_OK)
    s = kf_attention_probe_create(source->a, source->hidden, f->all.window, source->o, source->q_norm, source->k_norm,
                                  f->config->eps, &probe, e);
  if (s == KF_OK) s = kf_query_refit(source, &probe, &x, f->threads, out, e);
  kf_attention_probe_free(&probe);
  free(normed);
  return s;
}

/* The layer as mapped, f->student's description of it included; free with kf_layer_mapped_free. */
static kf_status load(kf_fold *f, int index, const kf_layer *teacher, const kf_mapped *m, kf_layer *out, kf_error *e) {
  f->student.layer[index].attention = m->attention;
  return kf_layer_mapped(f->device, teacher, &f->student.layer[index], m, out, e);
}

/* Output projection and, with refit=all, queries: those of the closed form or those refitted, whichever leaves less error. */
static kf_status refit(kf_fold *f, int index, const kf_fold_source *source, const kf_layer *teacher, kf_mapped *out,
                       kf_error *e) {
  trials t = {0};
  float *plain;
  int best;
  kf_status s;
  KF_TRY(kf_fold_projection(source, out, "q_proj", &plain, e));
  KF_GO(load(f, index, teacher, out, &t.layer[t.count], e));
  t.count++;
  if (f->refit == KF_FOLD_REFIT_ALL) {
    KF_GO(refit_queries(f, source, teacher, out, e));
    KF_GO(load(f, index, teacher, out, &t.layer[t.count], e));
    t.count++;
  }
  KF_GO(refit_output(f, index, source, teacher, &t, out, &best, e));
  if (best == 0) kf_fold_set_projection(source, out, "q_proj", plain);
  f->refitted += best;
done:
  for (int i = 0; i < t.count; i++) kf_layer_mapped_free(&t.layer[i], teacher, f->device);
  kf_arena_free(&t.arena);
  free(plain);
  return s;
}

kf_status kf_fold_refit(kf_fold *f, int index, const kf_fold_source *source, const kf_layer *teacher, kf_mapped *out,
                        kf_error *e) {
  kf_layer layer;
  if (f->converted.x) KF_TRY(refit(f, index, source, teacher, out, e));
  kf_status s = load(f, index, teacher, out, &layer, e);
  if (s == KF_OK) {
    s = kf_stream_forward(f->device, f->run, &layer, index, &f->student.stream, NULL, e);
    if (s == KF_OK && f->converted.x) s = kf_stream_forward(f->device, f->run, &layer, index, &f->converted, NULL, e);
    kf_layer_mapped_free(&layer, teacher, f->device);
  }
  kf_student_forget(&f->student, index, f->elements); /* the lists of `out` are the caller's */
  return s;
}
