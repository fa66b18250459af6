/* fold's rotated channels against plain sums: the moments of rotations and queries, and the loss that channels leave. */
#include "convert/rope_channels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"

typedef double complex cplx;

enum { HEADS = 6, KV = 2, F = 5, N = 2 * F, D = 13, WINDOW = 24, QUERIES = 40 };

typedef struct layer {
  double distance[HEADS * WINDOW], query[HEADS * N * N], key_moment[D * D], theta[F];
  double q[HEADS][QUERIES][N];
  cplx zk[KV * F * D];
  kf_attention_statistics s;
} layer;

/* Random queries, keys and inputs; near distances weigh most. */
static void make(layer *l, uint64_t seed) {
  kf_random r;
  memset(l, 0, sizeof *l);
  kf_random_seed(&r, seed);
  for (int f = 0; f < F; f++) l->theta[f] = pow(0.3, f);
  for (int i = 0; i < KV * F * D; i++) l->zk[i] = CMPLX(kf_random_normal(&r), kf_random_normal(&r));
  for (int h = 0; h < HEADS; h++) {
    for (int t = 0; t < WINDOW; t++) l->distance[h * WINDOW + t] = exp(-(1 + h) * 0.2 * t) * (1 + kf_random_uniform(&r));
    for (int k = 0; k < QUERIES; k++)
      for (int i = 0; i < N; i++) l->q[h][k][i] = kf_random_normal(&r) * (1 + i % 3) + (i ? l->q[h][k][i - 1] : 0);
    for (int k = 0; k < QUERIES; k++)
      for (int i = 0; i < N * N; i++) l->query[h * N * N + i] += l->q[h][k][i / N] * l->q[h][k][i % N];
  }
  for (int k = 0; k < 3 * D; k++) {
    double x[D];
    for (int i = 0; i < D; i++) x[i] = kf_random_normal(&r) * (1 + i % 4);
    for (int i = 0; i < D * D; i++) l->key_moment[i] += x[i / D] * x[i % D];
  }
  l->s = (kf_attention_statistics){.heads = HEADS,
                                   .kv_heads = KV,
                                   .d_qk = N,
                                   .hidden = D,
                                   .inputs = D,
                                   .window = WINDOW,
                                   .tokens = QUERIES,
                                   .weight = 3 * D,
                                   .distance = l->distance,
                                   .query = l->query,
                                   .key_moment = l->key_moment};
}

/* Part of head h's weight that lies at distance t: 0.98 as seen, 0.02 evenly over contexts of every octave beyond the window. */
static double share(const layer *l, int h, int64_t t, int64_t reach) {
  double sum = 0, even = 0;
  int octaves = 0;
  for (int i = 0; i < WINDOW; i++) sum += l->distance[h * WINDOW + i];
  for (int64_t length = reach; length > WINDOW; length /= 2, octaves++) even += t < length ? 1 / (double)length : 0;
  double seen = t < WINDOW ? l->distance[h * WINDOW + t] / sum : 0;
  return octaves ? 0.98 * seen + 0.02 * even / octaves : seen;
}

static cplx turn(const layer *l, int f, int64_t t) {
  return CMPLX(cos(l->theta[f] * (double)t), -sin(l->theta[f] * (double)t));
}

static void near(cplx got, cplx wanted, const char *what) {
  if (cabs(got - wanted) > 1e-9 * (1 + cabs(wanted)))
    fail_msg("%s: %g%+gi, not %g%+gi", what, creal(got), cimag(got), creal(wanted), cimag(wanted));
}

static void test_moments(void **state) {
  (void)state;
  static layer l;
  static const int64_t reaches[] = {7, WINDOW, 61, 500}; /* shorter than the window, too */
  make(&l, 1);
  for (size_t k = 0; k < sizeof reaches / sizeof *reaches; k++) {
    kf_rope_problem p;
    assert_int_equal(kf_rope_problem_create(&l.s, l.zk, l.theta, reaches[k], &p, NULL), KF_OK);
    int64_t end = reaches[k] > WINDOW ? reaches[k] : WINDOW;
    for (int h = 0; h < HEADS; h++)
      for (int f = 0; f < F; f++) {
        cplx mean = 0;
        for (int64_t t = 0; t < end; t++) mean += share(&l, h, t, reaches[k]) * turn(&l, f, t);
        near(p.mean[h * F + f], mean, "mean rotation");
        for (int i = 0; i < F; i++) {
          cplx gram = 0, query = 0;
          for (int64_t t = 0; t < end; t++)
            gram += share(&l, h, t, reaches[k]) * (turn(&l, f, t) - p.mean[h * F + f]) * conj(turn(&l, i, t) - p.mean[h * F + i]);
          near(p.gram[(h * F + f) * F + i], gram, "Gram of rotations");
          for (int t = 0; t < QUERIES; t++) {
            const double *q = l.q[h][t];
            query += CMPLX(q[f], -q[F + f]) * CMPLX(q[i], q[F + i]) / QUERIES;
          }
          near(p.query[(h * F + f) * F + i], query, "query moment");
        }
      }
    kf_rope_problem_free(&p);
  }
}

/* sum_h E_q E_x E_D |sum_f conj(q_hf) (k_gf (e_f - m_f) - sum_j beta_hfj p_j (e_j - m_j))|^2, distance by distance and query by
 * query; E_x by the moment of x. */
static double loss(const layer *l, const kf_rope_problem *p, const kf_channels *c) {
  double sum = 0;
  for (int h = 0; h < HEADS; h++)
    for (int64_t t = 0; t < p->reach; t++)
      for (int k = 0; k < QUERIES; k++) {
        cplx row[D] = {0}, scores = 0; /* the error of the score as a linear function of x */
        for (int f = 0; f < F; f++) {
          cplx q = CMPLX(l->q[h][k][f], -l->q[h][k][F + f]), own = q * (turn(l, f, t) - p->mean[h * F + f]);
          for (int i = 0; i < D; i++) row[i] += own * l->zk[(h / (HEADS / KV) * F + f) * D + i];
          for (int j = 0; j < c->count; j++) {
            int at = c->frequency[j];
            cplx with = q * c->beta[(h * F + f) * c->count + j] * (turn(l, at, t) - p->mean[h * F + at]);
            for (int i = 0; i < D; i++) row[i] -= with * c->u[j * D + i];
          }
        }
        for (int i = 0; i < D; i++)
          for (int o = 0; o < D; o++) scores += row[i] * conj(row[o]) * l->key_moment[i * D + o];
        sum += share(l, h, t, p->reach) * creal(scores) / QUERIES / l->s.weight;
      }
  return sum;
}

/* A channel's key and what the heads' queries ask of it have the same energy, query by query and by the moment of x. */
static void balanced(const layer *l, const kf_channels *c) {
  for (int j = 0; j < c->count; j++) {
    double key = 0, query = 0;
    for (int i = 0; i < D * D; i++)
      key += creal(c->u[j * D + i / D] * conj(c->u[j * D + i % D])) * l->key_moment[i] / l->s.weight;
    for (int h = 0; h < HEADS; h++)
      for (int k = 0; k < QUERIES; k++) {
        cplx asked = 0;
        for (int f = 0; f < F; f++) asked += conj(c->beta[(h * F + f) * c->count + j]) * CMPLX(l->q[h][k][f], l->q[h][k][F + f]);
        query += creal(asked * conj(asked)) / QUERIES / HEADS;
      }
    if (fabs(key - query) > 1e-9 * query) fail_msg("channel %d: its key has %g, its queries %g", j, key, query);
  }
}

/* Channels and coefficients that were fitted to each other leave less than single frequencies do, and moving a channel any way
 * leaves more. */
static void test_fitted(void **state) {
  (void)state;
  static layer l;
  for (uint64_t seed = 2; seed < 5; seed++) {
    kf_rope_problem p;
    kf_channels fold, greedy;
    kf_random r;
    make(&l, seed);
    kf_random_seed(&r, seed);
    assert_int_equal(kf_rope_problem_create(&l.s, l.zk, l.theta, 3 * WINDOW, &p, NULL), KF_OK);
    static const bool slots[F] = {true, true, true, true, false};
    assert_int_equal(kf_channels_greedy(&p, 4, slots, &greedy, NULL), KF_OK);
    assert_int_equal(kf_channels_greedy(&p, 4, slots, &fold, NULL), KF_OK);
    assert_int_equal(kf_channels_fit(&p, &fold, NULL), KF_OK);
    balanced(&l, &greedy);
    balanced(&l, &fold);
    double best = loss(&l, &p, &fold), single = loss(&l, &p, &greedy);
    if (!(best < 0.9 * single)) fail_msg("fitted channels leave %g, single frequencies %g", best, single);
    for (int trial = 0; trial < 8; trial++) {
      int j = trial % 4;
      cplx before[D];
      memcpy(before, fold.u + j * D, sizeof before);
      double size = 0;
      for (int i = 0; i < D; i++) size += creal(before[i] * conj(before[i])) / D;
      for (int i = 0; i < D; i++) fold.u[j * D + i] += 0.05 * sqrt(size) * CMPLX(kf_random_normal(&r), kf_random_normal(&r));
      double moved = loss(&l, &p, &fold);
      if (!(moved > best)) fail_msg("channel %d leaves %g where it is and %g elsewhere", j, best, moved);
      memcpy(fold.u + j * D, before, sizeof before);
    }
    kf_channels_free(&fold);
    kf_channels_free(&greedy);
    kf_rope_problem_free(&p);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_moments), cmocka_unit_test(test_fitted)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
