/* Recipe files: every field, and each complaint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "kvfold/kvfold.h"

static char path[64];

static kf_status read_text(const char *text, kf_recipe **r, kf_convert_options *o, kf_error *e) {
  assert_int_equal(kf_write_file(path, text, strlen(text), NULL), KF_OK);
  return kf_recipe_read(path, r, o, e);
}

static const char *setting(const kf_convert_options *o, const char *key) {
  for (int i = 0; i < o->setting_count; i++)
    if (strcmp(o->settings[i].key, key) == 0) return o->settings[i].value;
  return NULL;
}

static void test_every_field(void **state) {
  (void)state;
  kf_recipe *r;
  kf_convert_options o;
  kf_error e = {0};
  const char *text = "method: mha2mla\ncache: 50%\ndtype: bf16\nset:\n  rope_policy: 2-norm\n  rope_pairs: 4\n"
                     "calibration: [a.txt, b.jsonl.zst]\ncalibration_tokens: 5000\nshard_bytes: 1000000\n";
  if (read_text(text, &r, &o, &e) != KF_OK) fail_msg("%s", e.message);
  assert_string_equal(o.method, "mha2mla");
  assert_string_equal(o.cache, "50%");
  assert_string_equal(o.dtype, "bf16");
  assert_int_equal(o.setting_count, 2);
  assert_string_equal(setting(&o, "rope_policy"), "2-norm");
  assert_string_equal(setting(&o, "rope_pairs"), "4");
  assert_int_equal(o.calibration_count, 2);
  assert_string_equal(o.calibration[1], "b.jsonl.zst");
  assert_int_equal(o.calibration_tokens, 5000);
  assert_int_equal(o.shard_bytes, 1000000);
  kf_recipe_free(r);
}

static void test_defaults(void **state) {
  (void)state;
  kf_recipe *r;
  kf_convert_options o;
  kf_error e = {0};
  if (read_text("method: x-ecomla\ncache: 96\nset: {kv_energy: 0.9, layers: '0,2-3'}\ncalibration-tokens: 7\n", &r, &o, &e) !=
      KF_OK)
    fail_msg("%s", e.message);
  assert_string_equal(o.cache, "96");
  assert_null(o.dtype);
  assert_string_equal(setting(&o, "layers"), "0,2-3");
  assert_int_equal(o.calibration_count, 0);
  assert_int_equal(o.calibration_tokens, 7);
  kf_recipe_free(r);
  if (read_text("method: none\n", &r, &o, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(o.setting_count, 0);
  kf_recipe_free(r);
  if (read_text("cache: 50%\n", &r, &o, &e) != KF_OK) fail_msg("%s", e.message); /* the method may be given elsewhere */
  assert_null(o.method);
  assert_string_equal(o.cache, "50%");
  kf_recipe_free(r);
}

static void refused(kf_status status, const char *text, const char *says) {
  kf_recipe *r;
  kf_convert_options o;
  kf_error e = {0};
  assert_int_equal(read_text(text, &r, &o, &e), status);
  assert_null(r);
  if (!strstr(e.message, says) || !strstr(e.message, path)) fail_msg("'%s' does not say '%s'", e.message, says);
}

static void test_refusals(void **state) {
  (void)state;
  refused(KF_ERROR_USAGE, "method: mha2mla\nrank: 4\n", "rank");
  refused(KF_ERROR_USAGE, "method: mha2mla\nset: {ropepairs: 4}\n", "ropepairs");
  refused(KF_ERROR_INPUT, "", "empty");
  refused(KF_ERROR_INPUT, "# nothing\n", "empty");
  refused(KF_ERROR_INPUT, "cache: {a: b}\n", path);
  refused(KF_ERROR_INPUT, "method: mha2mla\ncalibration: a.txt\n", path);
  refused(KF_ERROR_INPUT, "method: mha2mla\ncalibration_tokens: many\n", "many");
  refused(KF_ERROR_INPUT, "method: [mha2mla\n", path);
  kf_recipe *r;
  kf_convert_options o;
  kf_error e;
  assert_int_equal(kf_recipe_read("/nowhere.yaml", &r, &o, &e), KF_ERROR_IO);
}

static int make_path(void **state) {
  (void)state;
  snprintf(path, sizeof path, "/tmp/kvfold-recipe-XXXXXX");
  int fd = mkstemp(path);
  return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state) {
  (void)state;
  return unlink(path);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_field), cmocka_unit_test(test_defaults),
                                     cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, make_path, remove_path);
}
