/* One layer in TransMLA's form, on layers of every family: with every latent kept only the rotation differs from the source, so
 * that scores of a token with itself and values are the source's; with fewer, the error is the energy that was left out. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/random.h"
#include "convert/joint_latent.h"
#include "linalg/linalg.h"
#include "model/model.h"

enum { SAMPLES = 40 };

static double *numbers(int64_t count) {
  double *p = kf_alloc((size_t)count + 1, sizeof *p, NULL);
  assert_non_null(p);
  return p;
}

/* x' = [x; 1] of SAMPLES random inputs. */
static double *random_inputs(int64_t width) {
  kf_random r;
  double *x = numbers(SAMPLES * width);
  kf_random_seed(&r, 5);
  for (int64_t i = 0; i < SAMPLES * width; i++) x[i] = i % width == width - 1 ? 1 : kf_random_normal(&r);
  return x;
}

/* moment [width, width] = mean of x' x'^T and a little of the identity */
static double *moment_of(const double *x, int64_t width) {
  double *m = numbers(width * width);
  for (int64_t i = 0; i < width - 1; i++) m[i * width + i] = 0.1;
  kf_gemm(true, false, width, width, SAMPLES, 1.0 / SAMPLES, x, x, 1, m);
  return m;
}

/* Row r of a mapped affine map on x'. */
static double apply(const kf_mapped *m, const char *weight, const char *bias, int64_t row, const double *x) {
  double sum = 0;
  for (int i = 0; i < m->tensors; i++) {
    const kf_mapped_tensor *t = &m->tensor[i];
    for (int64_t c = 0; strcmp(t->name, weight) == 0 && c < t->shape[1]; c++)
      sum += (double)t->data[row * t->shape[1] + c] * x[c];
    if (bias && strcmp(t->name, bias) == 0) sum += t->data[row];
  }
  return sum;
}

static double dot(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* Cache row [latents | turned pairs] of x', then what kv_b makes of the latents. */
static double *expanded(const kf_mapped *m, const double *x, double **row) {
  const kf_attention_config *a = &m->attention;
  int rope = 2 * a->rope_pairs[0], rows = kf_attention_kv_b_rows(a);
  double *kv = numbers(rows);
  *row = numbers(a->rank + rope);
  for (int i = 0; i < a->rank + rope; i++) (*row)[i] = apply(m, "kv_a_proj.weight", "kv_a_proj.bias", i, x);
  for (int i = 0; i < rows; i++) kv[i] = apply(m, "kv_b_proj.weight", NULL, i, *row);
  return kv;
}

/* gain: of the rotation on queries and keys; a score that lost its rotation has it too. */
static void check_same_token(const kf_projections *p, const kf_mapped *m, double gain, const double *x, const char *what) {
  const kf_attention_config *a = p->a, *b = &m->attention;
  int64_t d = a->d_qk, dv = a->d_v, rope = 2 * b->rope_pairs[0], w = p->width;
  double *row, *kv = expanded(m, x, &row), worst = 0, size = 0;
  for (int h = 0; h < a->heads; h++) {
    int64_t g = h / (a->heads / a->kv_heads);
    double want = 0, got = 0;
    for (int64_t i = 0; i < d; i++) want += gain * gain * dot(p->q + (h * d + i) * w, x, w) * dot(p->k + (g * d + i) * w, x, w);
    for (int64_t i = 0; i < d + rope; i++)
      got += apply(m, "q_proj.weight", "q_proj.bias", h * (d + rope) + i, x) *
             (i < d ? kv[g * (d + dv) + i] : gain * gain * row[b->rank + i - d]);
    worst = fmax(worst, fabs(want - got));
    size = fmax(size, fabs(want));
  }
  if (!(worst < 1e-5 * size)) fail_msg("%s: a score of %g is off by %g", what, size, worst);
  worst = size = 0;
  for (int64_t g = 0; g < a->kv_heads; g++)
    for (int64_t i = 0; i < dv; i++) {
      double want = dot(p->v + (g * dv + i) * w, x, w);
      worst = fmax(worst, fabs(want - kv[g * (d + dv) + d + i]));
      size = fmax(size, fabs(want));
    }
  if (!(worst < 1e-5 * size)) fail_msg("%s: a value of %g is off by %g", what, size, worst);
  free(row);
  free(kv);
}

/* Mean squared error of keys and values under the moment. What the turned pairs hold of a key is no error. */
static double measured_error(const kf_joint *j, const kf_mapped *m, const double *moment) {
  int64_t d = j->p->a->d_qk, dv = j->p->a->d_v, w = j->p->width, rank = m->attention.rank, rope = 2 * j->pairs;
  double *difference = numbers(w), *through = numbers(w), *turned = numbers(rope * w), sum = 0;
  double *latents = numbers(rank * w), *unit = numbers(w);
  for (int64_t i = 0; i < w; i++, unit[i - 1] = 0) {
    unit[i] = 1;
    for (int64_t r = 0; r < rank; r++) {
      double whole = apply(m, "kv_a_proj.weight", "kv_a_proj.bias", r, unit), bias = 0;
      if (m->attention.kv_a_bias && i < w - 1) {
        unit[i] = 0;
        bias = apply(m, "kv_a_proj.weight", "kv_a_proj.bias", r, unit);
        unit[i] = 1;
      }
      latents[r * w + i] = whole - bias;
    }
  }
  kf_gemm(false, false, rope, w, j->merged, 1, j->turn, j->p->k, 0, turned);
  for (int64_t g = 0; g < j->p->a->kv_heads; g++)
    for (int64_t i = 0; i < d + dv; i++) {
      const double *from = i < d ? j->p->k + (g * d + i) * w : j->p->v + (g * dv + i - d) * w;
      memcpy(difference, from, (size_t)w * sizeof *from);
      for (int64_t r = 0; i < d && r < rope; r++)
        for (int64_t c = 0; c < w; c++) difference[c] -= j->turn[r * j->merged + g * d + i] * turned[r * w + c];
      for (int64_t r = 0; r < rank; r++) {
        double up = 0;
        for (int t = 0; t < m->tensors; t++)
          if (strcmp(m->tensor[t].name, "kv_b_proj.weight") == 0) up = m->tensor[t].data[(g * (d + dv) + i) * rank + r];
        for (int64_t c = 0; c < w; c++) difference[c] -= up * latents[r * w + c];
      }
      kf_gemm(false, false, 1, w, w, 1, difference, moment, 0, through);
      sum += dot(through, difference, w);
    }
  free(difference);
  free(through);
  free(turned);
  free(latents);
  free(unit);
  return sum;
}

static void check_layer(const char *model, const kf_weights *weights, int layer) {
  kf_projections p;
  kf_error e = {0};
  if (kf_projections_read(weights, layer, &p, &e) != KF_OK) fail_msg("%s", e.message);
  double *x = random_inputs(p.width), *moment = moment_of(x, p.width);
  int d = p.a->d_qk;
  for (int part = 1; part <= 2; part++)
    for (int fold = part; fold <= d / 2; fold *= 2) {
      if (d % (2 * part) || d / 2 % fold) continue;
      kf_joint_settings s = {.rope_dim = d / part, .freqfold = fold, .balance = part == 1 ? 1 : 0};
      kf_joint joint;
      kf_mapped m;
      char what[KF_PATH + 64];
      snprintf(what, sizeof what, "%s, layer %d, rope_dim %d, freqfold %d", model, layer, d / part, fold);
      if (kf_joint_create(&p, moment, moment, &s, 64, &joint, &e) != KF_OK) fail_msg("%s: %s", what, e.message);
      if (kf_joint_map(&joint, (int)joint.rows, &m, &e) != KF_OK) fail_msg("%s: %s", what, e.message);
      for (int i = 0; i < 3; i++) check_same_token(&p, &m, joint.gain, x + i * p.width, what);
      kf_mapped_free(&m);
      int rank = (int)joint.rows / 2;
      double left = 0;
      for (int64_t i = rank; i < joint.rows; i++) left += fmax(joint.energy[i], 0);
      if (kf_joint_map(&joint, rank, &m, &e) != KF_OK) fail_msg("%s: %s", what, e.message);
      double error = joint.key_scale == 1 && joint.gain == 1 ? measured_error(&joint, &m, moment) : left;
      if (!(fabs(error - left) < 1e-4 * joint.energy[0])) fail_msg("%s: an error of %g, left out %g", what, error, left);
      kf_mapped_free(&m);
      kf_joint_free(&joint);
    }
  free(x);
  free(moment);
  kf_projections_free(&p);
}

static void test_every_family(void **state) {
  (void)state;
  const char *root = KVFOLD_SOURCE_DIR "/tests/fixtures/families";
  DIR *d = opendir(root);
  int done = 0, unrotated = 0, biased = 0;
  if (!d) {
    printf("SKIP: %s is not here\n", root);
    skip();
  }
  for (struct dirent *f; (f = readdir(d));) {
    char model[KF_PATH], path[KF_PATH];
    kf_config c;
    kf_weights w;
    if (f->d_name[0] == '.' || kf_join(model, root, f->d_name, NULL) != KF_OK || kf_locate(model, path, NULL) != KF_OK ||
        kf_model_read(path, &c, &w, NULL) != KF_OK)
      continue;
    for (int i = 0; i < c.layers; i++) {
      const kf_attention_config *a = &c.layer[i].attention;
      if (a->kind != KF_GROUPED || a->qk_norm) continue;
      check_layer(f->d_name, &w, i);
      done++;
      unrotated += !a->rope_pairs[0];
      biased += a->k_bias;
    }
    kf_weights_close(&w);
    kf_config_free(&c);
  }
  closedir(d);
  assert_true(done > 0 && unrotated > 0 && biased > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_family)};
  return cmocka_run_group_tests_name("joint latent", tests, NULL, NULL);
}
