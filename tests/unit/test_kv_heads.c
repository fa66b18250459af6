/* Fewer KV heads: as many as the source has is the source; heads that are turned copies of one another merge without loss; what
 * is written is a grouped model of the source's family. */
#include <complex.h>
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/random.h"
#include "convert/kv_heads.h"
#include "model/model.h"

static const char books[] = KVFOLD_SOURCE_DIR "/examples/books-7m";
static const char text[] = KVFOLD_SOURCE_DIR "/examples/books-7m/held-out.txt";
static char scratch[] = "/tmp/kvfold-kv-heads-XXXXXX";

static int make_scratch(void **state) {
  (void)state;
  return !mkdtemp(scratch);
}
static int remove_scratch(void **state) {
  (void)state;
  return kf_remove_tree(scratch, NULL) != KF_OK;
}

static kf_status convert(const char *src, const char *name, const char *cache, const char *kv_heads, char dst[256], kf_error *e) {
  const char *files[] = {text};
  const kf_setting setting = {"kv_heads", kv_heads};
  snprintf(dst, 256, "%s/%s", scratch, name);
  return kf_convert(src, dst,
                    &(kf_convert_options){.method = "kv-heads",
                                          .cache = cache,
                                          .dtype = "f32",
                                          .settings = &setting,
                                          .setting_count = kv_heads != NULL,
                                          .calibration = files,
                                          .calibration_count = 1,
                                          .calibration_tokens = 2560,
                                          .compute = KF_COMPUTE_F32},
                    NULL, e);
}

/* ---------------------------------------------------------------------------------------------- one layer */

static float mapped(const kf_mapped *m, const char *name, int64_t row, int64_t column) {
  for (int i = 0; i < m->tensors; i++)
    if (strcmp(m->tensor[i].name, name) == 0)
      return m->tensor[i].data[row * (m->tensor[i].dims == 2 ? m->tensor[i].shape[1] : 1) + column];
  fail_msg("no tensor %s", name);
  return 0;
}

enum { HEADS = 4, KV = 2, D = 8, HIDDEN = 12, WIDTH = HIDDEN + 1 };

/* Two KV heads, the second the first with every pair turned and stretched: k_1f = c_f k_0f; its values a mix of the first's. */
static void copies(kf_projections *p, float *o) {
  kf_random r;
  kf_random_seed(&r, 9);
  for (int i = 0; i < HEADS * D * WIDTH; i++) p->q[i] = kf_random_normal(&r);
  for (int i = 0; i < D * WIDTH; i++) p->k[i] = kf_random_normal(&r), p->v[i] = kf_random_normal(&r);
  for (int i = 0; i < HIDDEN * HEADS * D; i++) o[i] = (float)kf_random_normal(&r);
  for (int f = 0; f < D / 2; f++) {
    double complex turn = CMPLX(kf_random_normal(&r), kf_random_normal(&r));
    for (int i = 0; i < WIDTH; i++) {
      double complex k = turn * CMPLX(p->k[f * WIDTH + i], p->k[(f + D / 2) * WIDTH + i]);
      p->k[(D + f) * WIDTH + i] = creal(k);
      p->k[(D + f + D / 2) * WIDTH + i] = cimag(k);
    }
  }
  for (int j = 0; j < D; j++) {
    double mix[D];
    for (int l = 0; l < D; l++) mix[l] = kf_random_normal(&r);
    for (int i = 0; i < WIDTH; i++)
      for (int l = 0; l < D; l++) p->v[(D + j) * WIDTH + i] += mix[l] * p->v[l * WIDTH + i];
  }
}

/* Re sum_f conj(q_f) k_f e^(-i angle (f + 1)) */
static double rotated_score(const double *q, const double *k, double angle) {
  double sum = 0;
  for (int f = 0; f < D / 2; f++)
    sum += creal(conj(CMPLX(q[f], q[f + D / 2])) * CMPLX(k[f], k[f + D / 2]) * cexp(CMPLX(0, -angle * (f + 1))));
  return sum;
}

static void project(const double *a, int rows, const double *x, double *to) {
  for (int r = 0; r < rows; r++) {
    to[r] = 0;
    for (int i = 0; i < WIDTH; i++) to[r] += a[r * WIDTH + i] * x[i];
  }
}

static void project_mapped(const kf_mapped *m, const char *weight, const char *bias, int rows, const double *x, double *to) {
  for (int r = 0; r < rows; r++) {
    to[r] = mapped(m, bias, r, 0);
    for (int i = 0; i < HIDDEN; i++) to[r] += (double)mapped(m, weight, r, i) * x[i];
  }
}

static void test_turned_copies_merge_without_loss(void **state) {
  (void)state;
  static const int pairs[KV] = {D / 2, D / 2};
  double q[HEADS * D * WIDTH] = {0}, k[KV * D * WIDTH] = {0}, v[KV * D * WIDTH] = {0}, moment[WIDTH * WIDTH] = {0}, x[2][WIDTH];
  float o[HIDDEN * HEADS * D];
  kf_attention_config a = {.kind = KF_GROUPED,
                           .heads = HEADS,
                           .kv_heads = KV,
                           .d_qk = D,
                           .d_v = D,
                           .rope_heads = KV,
                           .rope_pairs = pairs,
                           .q_bias = true,
                           .k_bias = true,
                           .v_bias = true};
  kf_projections p = {.a = &a, .width = WIDTH, .q = q, .k = k, .v = v};
  kf_mapped m;
  kf_error e = {0};
  kf_random r;
  copies(&p, o);
  kf_random_seed(&r, 2);
  for (int i = 0; i < WIDTH; i++) moment[i * WIDTH + i] = 1, x[0][i] = kf_random_normal(&r), x[1][i] = kf_random_normal(&r);
  x[0][HIDDEN] = x[1][HIDDEN] = 1;
  if (kf_kv_heads_merge(&p, o, moment, 1, &m, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(m.attention.kv_heads, 1);
  double query[HEADS * D], key[KV * D], value[KV * D], query2[HEADS * D], key2[D], value2[D];
  project(q, HEADS * D, x[0], query);
  project(k, KV * D, x[1], key);
  project(v, KV * D, x[1], value);
  project_mapped(&m, "q_proj.weight", "q_proj.bias", HEADS * D, x[0], query2);
  project_mapped(&m, "k_proj.weight", "k_proj.bias", D, x[1], key2);
  project_mapped(&m, "v_proj.weight", "v_proj.bias", D, x[1], value2);
  for (int h = 0; h < HEADS; h++) {
    double want = rotated_score(query + h * D, key + h / 2 * D, 0.7), got = rotated_score(query2 + h * D, key2, 0.7);
    if (!(fabs(want - got) < 1e-4 * (1 + fabs(want)))) fail_msg("head %d: score %g, expected %g", h, got, want);
    for (int i = 0; i < HIDDEN; i++) {
      double out = 0, out2 = 0;
      for (int j = 0; j < D; j++) {
        out += o[i * HEADS * D + h * D + j] * value[h / 2 * D + j];
        out2 += (double)mapped(&m, "o_proj.weight", i, h * D + j) * value2[j];
      }
      if (!(fabs(out - out2) < 1e-4 * (1 + fabs(out)))) fail_msg("head %d: output %g, expected %g", h, out2, out);
    }
  }
  kf_mapped_free(&m);
}

/* As many heads as before, on layers of every family, biases and layers without RoPE included: the same scores and outputs, which
 * for a rotated layer are even the same weights. */
static void check_all_heads(const kf_weights *w, int layer, const char *what) {
  const kf_attention_config *a = &w->config->layer[layer].attention;
  int64_t hidden = w->config->hidden, wide = (int64_t)a->heads * a->d_v;
  kf_projections p;
  kf_mapped m;
  kf_error e = {0};
  float *o;
  if (kf_projections_read(w, layer, &p, &e) != KF_OK ||
      kf_weights_readf(w, hidden, wide, &o, &e, "model.layers.%d.self_attn.o_proj.weight", layer) != KF_OK)
    fail_msg("%s: %s", what, e.message);
  double *moment = kf_alloc((size_t)(p.width * p.width), sizeof *moment, NULL);
  assert_non_null(moment);
  for (int64_t i = 0; i < p.width; i++) moment[i * p.width + i] = 1 + 0.01 * (double)i;
  if (kf_kv_heads_merge(&p, o, moment, a->kv_heads, &m, &e) != KF_OK) fail_msg("%s: %s", what, e.message);
  int share = a->heads / a->kv_heads;
  for (int h = 0; h < a->heads; h += share)
    for (int64_t i = 0; i < hidden; i += 7) {
      double want = 0, got = 0, want_out = 0, got_out = 0; /* q . k of two coordinates of x; W_o v of one */
      for (int64_t j = 0; j < a->d_qk; j++) {
        want += p.q[(h * a->d_qk + j) * p.width + i] * p.k[(h / share * a->d_qk + j) * p.width + hidden - 1 - i];
        got += (double)mapped(&m, "q_proj.weight", h * a->d_qk + j, i) *
               (double)mapped(&m, "k_proj.weight", h / share * a->d_qk + j, hidden - 1 - i);
      }
      for (int64_t j = 0; j < a->d_v; j++) {
        want_out += o[i * wide + h * a->d_v + j] * p.v[(h / share * a->d_v + j) * p.width + i];
        got_out += (double)mapped(&m, "o_proj.weight", i, h * a->d_v + j) *
                   (double)mapped(&m, "v_proj.weight", h / share * a->d_v + j, i);
      }
      if (!(fabs(want - got) < 1e-5 && fabs(want_out - got_out) < 1e-5))
        fail_msg("%s, head %d: %g and %g, expected %g and %g", what, h, got, got_out, want, want_out);
    }
  for (int64_t j = 0; a->k_bias && a->rope_pairs[0] && j < (int64_t)a->kv_heads * a->d_qk; j++)
    assert_true(fabs((double)mapped(&m, "k_proj.bias", j, 0) - p.k[j * p.width + hidden]) < 1e-6);
  free(moment);
  free(o);
  kf_mapped_free(&m);
  kf_projections_free(&p);
}

static void test_all_heads_of_every_family(void **state) {
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
      check_all_heads(&w, i, f->d_name);
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

/* ---------------------------------------------------------------------------------------------- whole models */

static void test_a_grouped_model_is_written(void **state) {
  (void)state;
  char a[256], b[256], x[KF_PATH], y[KF_PATH];
  kf_error e = {0};
  kf_model_info info, again;
  kf_text one = {0}, two = {0};
  if (convert(books, "half", "50%", NULL, a, &e) != KF_OK || kf_model_describe(a, &info, &e) != KF_OK) fail_msg("%s", e.message);
  assert_string_equal(info.family, "llama");
  assert_string_equal(info.attention, "grouped");
  assert_string_equal(info.method, "kv-heads");
  assert_int_equal(info.kv_heads, 2);
  assert_int_equal(info.cache_elements_per_token, 8 * 128);
  if (convert(books, "two", NULL, "2", b, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(kf_join(x, a, "model.safetensors", NULL), KF_OK);
  assert_int_equal(kf_join(y, b, "model.safetensors", NULL), KF_OK);
  assert_true(kf_read_file(x, 1 << 28, &one, NULL) == KF_OK && kf_read_file(y, 1 << 28, &two, NULL) == KF_OK);
  assert_true(one.bytes == two.bytes && memcmp(one.data, two.data, one.bytes) == 0);
  kf_text_free(&one);
  kf_text_free(&two);
  if (convert(a, "one", NULL, "1", b, &e) != KF_OK || kf_model_describe(b, &again, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(again.kv_heads, 1);
}

static void test_all_heads_give_the_same_logits(void **state) {
  (void)state;
  enum { TOKENS = 40 };
  char dst[256];
  kf_error e = {0};
  kf_model *m[2];
  float *logits[2];
  int32_t ids[TOKENS];
  if (convert(books, "all", "100%", NULL, dst, &e) != KF_OK) fail_msg("%s", e.message);
  for (int i = 0; i < TOKENS; i++) ids[i] = 7 + 91 * i;
  for (int i = 0; i < 2; i++) {
    if (kf_model_open(i ? dst : books, &(kf_model_options){.compute = KF_COMPUTE_F32}, &m[i], &e) != KF_OK)
      fail_msg("%s", e.message);
    logits[i] = kf_alloc((size_t)TOKENS * (size_t)kf_model_get_info(m[i])->vocabulary, sizeof(float), NULL);
    assert_non_null(logits[i]);
    if (kf_logits(m[i], ids, TOKENS, logits[i], &e) != KF_OK) fail_msg("%s", e.message);
  }
  for (int i = 0; i < TOKENS * kf_model_get_info(m[0])->vocabulary; i++) assert_true(fabsf(logits[0][i] - logits[1][i]) < 2e-4f);
  for (int i = 0; i < 2; i++) {
    free(logits[i]);
    kf_model_close(m[i]);
  }
}

static void test_refusals(void **state) {
  (void)state;
  static const char qwen3[] = KVFOLD_SOURCE_DIR "/tests/fixtures/families/qwen3";
  char dst[256];
  kf_error e = {0};
  assert_int_equal(convert(books, "three", NULL, "3", dst, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "does not divide the source's 4"));
  assert_int_equal(convert(books, "tiny", "63", NULL, dst, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "one KV head takes 64"));
  assert_int_equal(convert(books, "both", "50%", "2", dst, &e), KF_ERROR_USAGE);
  assert_int_equal(convert(qwen3, "norms", "50%", NULL, dst, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "q/k norms"));
  assert_false(kf_exists(dst));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_turned_copies_merge_without_loss),
                                     cmocka_unit_test(test_all_heads_of_every_family),
                                     cmocka_unit_test(test_a_grouped_model_is_written),
                                     cmocka_unit_test(test_all_heads_give_the_same_logits), cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests_name("kv-heads", tests, make_scratch, remove_scratch);
}
