#include "base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char root[] = "/tmp/kvfold-test-file-XXXXXX";

static const char *at(const char *name) {
  static char path[4][KF_PATH];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], KF_PATH, "%s/%s", root, name);
  return path[turn];
}

static void put(const char *name, const char *text) {
  kf_error e;
  char path[KF_PATH];
  snprintf(path, sizeof path, "%s", at(name));
  for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
    *slash = 0;
    assert_int_equal(kf_make_directory(path, &e), KF_OK);
  }
  if (kf_write_file(path, text, strlen(text), &e) != KF_OK) fail_msg("%s", e.message);
}

static void write_read_copy(void **state) {
  (void)state;
  kf_error e;
  kf_text text;
  put("a.txt", "first");
  put("a.txt", "second");
  assert_int_equal(kf_read_file(at("a.txt"), 100, &text, &e), KF_OK);
  assert_string_equal(text.data, "second");
  kf_text_free(&text);
  assert_false(kf_exists(at("a.txt.tmp")));
  assert_int_equal(kf_read_file(at("a.txt"), 3, &text, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "6 bytes"));
  assert_int_equal(kf_read_file(at("none"), 3, &text, &e), KF_ERROR_IO);
  assert_non_null(strstr(e.message, "No such file"));
  assert_int_equal(kf_read_file(root, 3, &text, &e), KF_ERROR_INPUT);

  size_t bytes = 200001;
  char *big = kf_alloc(bytes, 1, &e);
  for (size_t i = 0; i < bytes; i++) big[i] = (char)(i * 7);
  assert_int_equal(kf_write_file(at("big"), big, bytes, &e), KF_OK);
  assert_int_equal(kf_copy_file(at("big"), at("copy"), &e), KF_OK);
  kf_map map;
  assert_int_equal(kf_map_open(at("copy"), &map, &e), KF_OK);
  assert_int_equal(map.bytes, bytes);
  assert_memory_equal(map.data, big, bytes);
  kf_map_done(&map, 1, bytes - 1);
  assert_memory_equal(map.data, big, bytes);
  kf_map_close(&map);
  free(big);
  put("empty", "");
  assert_int_equal(kf_map_open(at("empty"), &map, &e), KF_OK);
  assert_null(map.data);
}

static void what_cannot_be_written(void **state) {
  (void)state;
  kf_error e;
  assert_int_equal(kf_write_file(at("no/such/place"), "x", 1, &e), KF_ERROR_IO);
  assert_non_null(strstr(e.message, "No such file"));
  // The temporary file leads to a full disk; the file that was there stays as it was, and nothing else remains.
  put("kept", "old");
  assert_int_equal(symlink("/dev/full", at("kept.tmp")), 0);
  assert_int_equal(kf_write_file(at("kept"), "new", 3, &e), KF_ERROR_IO);
  assert_non_null(strstr(e.message, "No space left"));
  assert_false(kf_exists(at("kept.tmp")));
  kf_text text;
  assert_int_equal(kf_read_file(at("kept"), 100, &text, &e), KF_OK);
  assert_string_equal(text.data, "old");
  kf_text_free(&text);
}

static void trees(void **state) {
  (void)state;
  kf_error e;
  put("tree/b/c", "x");
  put("outside/file", "x");
  assert_int_equal(symlink(at("outside"), at("tree/link")), 0);
  assert_int_equal(kf_make_directory(at("tree"), &e), KF_OK);
  assert_int_equal(kf_make_directory(at("tree/b/c"), &e), KF_ERROR_IO);
  assert_int_equal(kf_remove_tree(at("tree"), &e), KF_OK);
  assert_false(kf_exists(at("tree")));
  assert_true(kf_is_file(at("outside/file")));
  assert_int_equal(kf_remove_tree(at("tree"), &e), KF_OK);

  char out[KF_PATH], name[KF_PATH];
  assert_int_equal(kf_join(out, "a/", "b", &e), KF_OK);
  assert_string_equal(out, "a/b");
  assert_int_equal(kf_join(out, "a", "b", &e), KF_OK);
  assert_string_equal(out, "a/b");
  memset(name, 'n', sizeof name);
  name[KF_PATH - 2] = 0;
  assert_int_equal(kf_join(out, "a", name, &e), KF_ERROR_INPUT);
}

static void located(const char *model, const char *expected) {
  kf_error e;
  char out[KF_PATH];
  if (kf_locate(model, out, &e) != KF_OK) fail_msg("%s", e.message);
  assert_string_equal(out, expected);
}

static void not_located(const char *model, const char *says) {
  kf_error e;
  char out[KF_PATH];
  assert_int_equal(kf_locate(model, out, &e), KF_ERROR_INPUT);
  if (!strstr(e.message, says)) fail_msg("%s: \"%s\" does not say \"%s\"", model, e.message, says);
}

static void models_in_the_cache(void **state) {
  (void)state;
  put("hub/models--org--small/refs/main", "0123abcd");
  put("hub/models--org--small/refs/v2", "4567cdef\n");
  put("hub/models--org--small/refs/gone", "ffff");
  put("hub/models--org--small/refs/evil", "../../../outside");
  put("hub/models--org--small/snapshots/0123abcd/config.json", "{}");
  put("hub/models--org--small/snapshots/4567cdef/config.json", "{}");
  put("hub/models--gpt2/refs/main", "aa");
  put("hub/models--gpt2/snapshots/aa/config.json", "{}");
  put("hub/models--org--one/refs/main", "aa");
  put("hub/models--org--one/snapshots/aa/m.Q4_1.gguf", "GGUF");
  put("hub/models--org--two/refs/main", "aa");
  put("hub/models--org--two/snapshots/aa/m.Q4_1.gguf", "GGUF");
  put("hub/models--org--two/snapshots/aa/m.Q8_0.gguf", "GGUF");
  put("hub/models--org--none/refs/main", "aa");
  put("hub/models--org--none/snapshots/aa/README.md", "");
  put("m.gguf", "GGUF");
  put("m.bin", "x");

  setenv("HF_HUB_CACHE", at("hub"), 1);
  located("org/small", at("hub/models--org--small/snapshots/0123abcd"));
  located("org/small@v2", at("hub/models--org--small/snapshots/4567cdef"));
  located("org/small@4567cdef", at("hub/models--org--small/snapshots/4567cdef"));
  located("gpt2", at("hub/models--gpt2/snapshots/aa"));
  located("org/one", at("hub/models--org--one/snapshots/aa/m.Q4_1.gguf"));
  located(at("m.gguf"), at("m.gguf"));
  located(root, root);
  not_located("org/absent", "huggingface-cli download org/absent");
  not_located("org/small@v3", "--revision v3");
  not_located("org/small@gone", "revision gone");
  not_located("org/small@evil", "revision evil");
  not_located("org/small@../../x", "not the name of a revision");
  not_located("org/two", "2 .gguf files");
  not_located("org/none", "without config.json");
  not_located(at("nowhere"), "does not exist");
  not_located("./nowhere", "does not exist");
  not_located("a/b/c", "does not exist");
  not_located("nowhere.gguf", "does not exist");
  not_located(at("m.bin"), "not named .gguf");
  not_located("", "no model");

  unsetenv("HF_HUB_CACHE");
  setenv("HF_HOME", root, 1);
  located("org/small", at("hub/models--org--small/snapshots/0123abcd"));
  unsetenv("HF_HOME");
  setenv("XDG_CACHE_HOME", root, 1);
  put("huggingface/hub/models--org--xdg/refs/main", "aa");
  put("huggingface/hub/models--org--xdg/snapshots/aa/config.json", "{}");
  located("org/xdg", at("huggingface/hub/models--org--xdg/snapshots/aa"));
  unsetenv("XDG_CACHE_HOME");
  setenv("HOME", root, 1);
  not_located("org/xdg", "/.cache/huggingface/hub");
}

static int begin(void **state) {
  (void)state;
  return mkdtemp(root) ? 0 : -1;
}

static int end(void **state) {
  (void)state;
  return kf_remove_tree(root, NULL) == KF_OK ? 0 : -1;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(write_read_copy),
      cmocka_unit_test(what_cannot_be_written),
      cmocka_unit_test(trees),
      cmocka_unit_test(models_in_the_cache),
  };
  return cmocka_run_group_tests(tests, begin, end);
}
