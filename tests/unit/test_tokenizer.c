#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#include <cmocka.h>

#include "base/json.h"

static const char *data_path(const char *name) {
  static char path[4][KF_PATH];
  static int turn;
  const char *root = getenv("KVFOLD_TEST_DATA");
  turn = (turn + 1) % 4;
  if (root)
    snprintf(path[turn], KF_PATH, "%s/%s", root, name);
  else
    snprintf(path[turn], KF_PATH, "%s/../shared/data/%s", KVFOLD_SOURCE_DIR, name);
  return path[turn];
}

static void need(const char *path) {
  if (kf_exists(path)) return;
  printf("SKIP: %s is not there\n", path);
  skip();
}

static kf_tokenizer *open_or_fail(const char *path) {
  kf_error e;
  kf_tokenizer *t = NULL;
  if (kf_tokenizer_open(path, &t, &e) != KF_OK) fail_msg("%s", e.message);
  return t;
}

static json_t *read_json(const char *path) {
  kf_error e;
  json_t *j = NULL;
  if (kf_json_read(path, &j, &e) != KF_OK) fail_msg("%s", e.message);
  return j;
}

static void encode(const kf_tokenizer *t, const char *text, size_t bytes, unsigned flags, kf_ids *out) {
  kf_error e;
  if (kf_tokenizer_encode(t, text, bytes, flags, out, &e) != KF_OK) fail_msg("%s", e.message);
}

static void decode(const kf_tokenizer *t, const kf_ids *ids, bool skip_special, kf_text *out) {
  kf_error e;
  if (kf_tokenizer_decode(t, ids->data, ids->count, skip_special, out, &e) != KF_OK) fail_msg("%s", e.message);
}

/* ------------------------------------------------------------------------------------------------ Hugging Face's cases */

static void check_ids(const char *name, const json_t *c, const char *key, const kf_ids *got) {
  const json_t *want = json_object_get(c, key);
  bool same = json_array_size(want) == got->count;
  for (size_t i = 0; same && i < got->count; i++) same = json_integer_value(json_array_get(want, i)) == got->data[i];
  if (same) return;
  char *expected = json_dumps(want, JSON_COMPACT);
  fprintf(stderr, "expected %s, found [", expected);
  for (size_t i = 0; i < got->count; i++) fprintf(stderr, "%d,", got->data[i]);
  fprintf(stderr, "]\n");
  free(expected);
  fail_msg("%s: %s of \"%s\"", name, key, json_string_value(json_object_get(c, "text")));
}

static void check_text(const char *name, const json_t *c, const char *key, const kf_text *got) {
  const json_t *want = json_object_get(c, key);
  if (json_string_length(want) != got->bytes || memcmp(json_string_value(want), got->data, got->bytes))
    fail_msg("%s: %s of \"%s\" is \"%s\", expected \"%s\"", name, key, json_string_value(json_object_get(c, "text")), got->data,
             json_string_value(want));
}

/* Pushed one at a time, every piece is UTF-8 by itself and together they are what decoding the whole gives. */
static void check_stream(const char *name, const kf_tokenizer *t, const kf_ids *ids, const kf_text *whole) {
  kf_error e;
  kf_decoder *d;
  kf_buffer all = {0};
  assert_int_equal(kf_decoder_create(t, false, &d, &e), KF_OK);
  for (size_t i = 0; i <= ids->count; i++) {
    kf_text piece;
    kf_status s = i < ids->count ? kf_decoder_push(d, ids->data[i], &piece, &e) : kf_decoder_finish(d, &piece, &e);
    assert_int_equal(s, KF_OK);
    json_t *valid = json_stringn(piece.data, piece.bytes);
    assert_non_null(valid);
    json_decref(valid);
    assert_int_equal(kf_buffer_add(&all, piece.data, piece.bytes, &e), KF_OK);
    kf_text_free(&piece);
  }
  if (all.bytes != whole->bytes || memcmp(all.data, whole->data, all.bytes))
    fail_msg("%s: streamed \"%s\", whole \"%s\"", name, all.data, whole->data);
  kf_buffer_free(&all);
  kf_decoder_free(d);
}

static void check_cases(const char *name, const kf_tokenizer *t, const json_t *cases) {
  assert_true(json_array_size(cases) > 20);
  for (size_t i = 0; i < json_array_size(cases); i++) {
    const json_t *c = json_array_get(cases, i), *text = json_object_get(c, "text");
    kf_ids ids, special;
    kf_text decoded, clean;
    encode(t, json_string_value(text), json_string_length(text), KF_ENCODE_PLAIN, &ids);
    check_ids(name, c, "ids", &ids);
    encode(t, json_string_value(text), json_string_length(text), KF_ENCODE_SPECIAL, &special);
    check_ids(name, c, "special", &special);
    decode(t, &special, false, &decoded);
    check_text(name, c, "decoded", &decoded);
    decode(t, &special, true, &clean);
    check_text(name, c, "clean", &clean);
    check_stream(name, t, &special, &decoded);
    kf_ids_free(&ids);
    kf_ids_free(&special);
    kf_text_free(&decoded);
    kf_text_free(&clean);
  }
}

static void every_part_of_a_tokenizer_file(void **state) {
  (void)state;
  json_t *file = read_json(KVFOLD_SOURCE_DIR "/tests/fixtures/tokenizers/small.json");
  const json_t *list = json_object_get(file, "tokenizers");
  assert_true(json_array_size(list) > 30);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *entry = json_array_get(list, i), *config = json_object_get(entry, "config");
    const char *name = json_string_value(json_object_get(entry, "name"));
    char *json = json_dumps(json_object_get(entry, "tokenizer"), 0);
    char *settings = json_is_object(config) ? json_dumps(config, 0) : NULL;
    kf_tokenizer *t = NULL;
    kf_error e;
    if (kf_tokenizer_parse(name, json, strlen(json), settings, settings ? strlen(settings) : 0, &t, &e) != KF_OK)
      fail_msg("%s", e.message);
    check_cases(name, t, json_object_get(entry, "cases"));
    kf_tokenizer_close(t);
    free(json);
    free(settings);
  }
  json_decref(file);
}

static void the_example_model(void **state) {
  (void)state;
  json_t *file = read_json(KVFOLD_SOURCE_DIR "/tests/fixtures/tokenizers/books-7m.json");
  kf_tokenizer *t = open_or_fail(KVFOLD_SOURCE_DIR "/examples/books-7m");
  check_cases("books-7m", t, json_object_get(file, "cases"));
  assert_int_equal(kf_tokenizer_size(t), 4096);
  assert_int_equal(kf_tokenizer_bos(t), 0);
  assert_int_equal(kf_tokenizer_eos(t), 1);
  assert_true(kf_tokenizer_adds_bos(t));
  assert_false(kf_tokenizer_adds_eos(t));
  assert_string_equal(kf_tokenizer_piece(t, 1), "<|end_of_text|>");
  assert_string_equal(kf_tokenizer_piece(t, 4096), "");
  assert_string_equal(kf_tokenizer_piece(t, -1), "");
  assert_string_equal(kf_tokenizer_special(t, "eos_token"), "<|end_of_text|>");
  assert_null(kf_tokenizer_special(t, "pad_token"));
  assert_null(kf_tokenizer_chat_template(t));
  kf_tokenizer_close(t);
  json_decref(file);
}

/* ------------------------------------------------------------------------------------------------ published vectors */

/* NAME.inp holds strings between separators, NAME.out a line of ids for each. */
static void check_vectors(const kf_tokenizer *t, const char *name) {
  char path[KF_PATH];
  kf_error e;
  kf_text in, out;
  snprintf(path, sizeof path, "%s/ggml-vocab-%s.gguf.inp", data_path("tokenizers/ggml-vocab"), name);
  need(path);
  assert_int_equal(kf_read_file(path, 1 << 20, &in, &e), KF_OK);
  strcpy(path + strlen(path) - 4, ".out");
  assert_int_equal(kf_read_file(path, 1 << 20, &out, &e), KF_OK);
  static const char separator[] = "\n__ggml_vocab_test__\n";
  char *line = out.data;
  int checked = 0;
  for (char *text = in.data, *end; (end = strstr(text, separator)); text = end + strlen(separator)) {
    kf_ids ids;
    encode(t, text, (size_t)(end - text), KF_ENCODE_PLAIN, &ids);
    for (size_t i = 0; i < ids.count; i++) {
      long want = strtol(line, &line, 10);
      if (want != ids.data[i]) fail_msg("%s: string %d, token %zu: expected %ld, found %d", name, checked, i, want, ids.data[i]);
    }
    line += strspn(line, " \r");
    if (*line != '\n') fail_msg("%s: string %d: tokens are missing", name, checked);
    line++;
    checked++;
    kf_ids_free(&ids);
  }
  assert_int_equal(checked, 46); /* and the last, which no separator ends, is empty */
  kf_text_free(&in);
  kf_text_free(&out);
}

static void vectors_from_gguf(void **state) {
  (void)state;
  static const char *const names[] = {"gpt-2", "llama-spm", "phi-3"};
  for (int i = 0; i < 3; i++) {
    char path[KF_PATH];
    snprintf(path, sizeof path, "%s/ggml-vocab-%s.gguf", data_path("tokenizers/ggml-vocab"), names[i]);
    need(path);
    kf_tokenizer *t = open_or_fail(path);
    check_vectors(t, names[i]);
    kf_tokenizer_close(t);
  }
}

static char scratch[] = "/tmp/kvfold-test-tokenizer-XXXXXX";

static void vectors_from_converted_files(void **state) {
  (void)state;
  static const char *const names[][2] = {{"gpt2", "gpt-2"}, {"llama2", "llama-spm"}, {"llama3", "llama-bpe"}, {"qwen2", "qwen2"}};
  char command[3 * KF_PATH], path[KF_PATH + 32];
  const char *source = data_path("tokenizers");
  need(source);
  snprintf(command, sizeof command, "python3 '%s/tools/golden/make_tokenizers.py' '%s' '%s'", KVFOLD_SOURCE_DIR, source, scratch);
  if (system("command -v python3 >/dev/null") != 0) {
    printf("SKIP: no python3 to convert the published tokenizers with\n");
    skip();
  }
  assert_int_equal(system(command), 0);
  for (int i = 0; i < 4; i++) {
    snprintf(path, sizeof path, "%s/%s", scratch, names[i][0]);
    kf_tokenizer *t = open_or_fail(path);
    check_vectors(t, names[i][1]);
    kf_tokenizer_close(t);
  }
}

/* What is written for a GGUF loads back to the same ids, rule and template. */
static void written_files_load_back(void **state) {
  (void)state;
  static const char *const names[] = {"gpt-2", "llama-spm", "phi-3"};
  const char *text = data_path("text/tinystories_valid_excerpt.txt");
  kf_error e;
  kf_text story;
  need(text);
  assert_int_equal(kf_text_read(text, &story, &e), KF_OK);
  for (int i = 0; i < 3; i++) {
    char path[KF_PATH];
    snprintf(path, sizeof path, "%s/ggml-vocab-%s.gguf", data_path("tokenizers/ggml-vocab"), names[i]);
    need(path);
    kf_tokenizer *a = open_or_fail(path);
    if (kf_tokenizer_write(a, scratch, &e) != KF_OK) fail_msg("%s", e.message);
    kf_tokenizer *b = open_or_fail(scratch);
    check_vectors(b, names[i]);
    kf_ids x, y;
    encode(a, story.data, story.bytes, KF_ENCODE_SPECIAL, &x);
    encode(b, story.data, story.bytes, KF_ENCODE_SPECIAL, &y);
    assert_int_equal(x.count, y.count);
    assert_memory_equal(x.data, y.data, x.count * sizeof *x.data);
    assert_int_equal(kf_tokenizer_bos(a), kf_tokenizer_bos(b));
    assert_int_equal(kf_tokenizer_eos(a), kf_tokenizer_eos(b));
    assert_int_equal(kf_tokenizer_adds_bos(a), kf_tokenizer_adds_bos(b));
    assert_int_equal(kf_tokenizer_adds_bos(a), i > 0);
    assert_int_equal(!!kf_tokenizer_chat_template(a), i == 2);
    if (i == 2) assert_string_equal(kf_tokenizer_chat_template(a), kf_tokenizer_chat_template(b));
    kf_ids_free(&x);
    kf_ids_free(&y);
    kf_tokenizer_close(a);
    kf_tokenizer_close(b);
  }
  kf_text_free(&story);
}

/* ------------------------------------------------------------------------------------------------ limits */

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Long runs take time in proportion; the bound would be passed a thousandfold by a quadratic step. */
static void long_runs_are_not_quadratic(void **state) {
  (void)state;
  enum { BYTES = 1 << 20 };
  static const char *const patterns[] = {"a", " ", "\n", "ab", "e\xcc\x81\xcc\xa7", "1", " a", "<|", "\xcc\x81"};
  json_t *file = read_json(KVFOLD_SOURCE_DIR "/tests/fixtures/tokenizers/small.json");
  const json_t *list = json_object_get(file, "tokenizers");
  char *text = malloc(BYTES);
  for (size_t i = 0; i <= json_array_size(list); i++) {
    kf_tokenizer *t = NULL;
    kf_error e;
    const json_t *entry = json_array_get(list, i);
    const char *name = entry ? json_string_value(json_object_get(entry, "name")) : "books-7m";
    if (!strstr("sentencepiece, Llama 3, Metaspace first True, Split Contiguous False, NFKC, books-7m", name)) continue;
    char *json = entry ? json_dumps(json_object_get(entry, "tokenizer"), 0) : NULL;
    if (json)
      assert_int_equal(kf_tokenizer_parse("small", json, strlen(json), NULL, 0, &t, &e), KF_OK);
    else
      t = open_or_fail(KVFOLD_SOURCE_DIR "/examples/books-7m");
    for (size_t p = 0; p < sizeof patterns / sizeof *patterns; p++) {
      size_t n = strlen(patterns[p]), bytes = BYTES / n * n;
      for (size_t k = 0; k < bytes; k++) text[k] = patterns[p][k % n];
      kf_ids ids;
      double start = seconds();
      encode(t, text, bytes, KF_ENCODE_PLAIN, &ids);
      if (seconds() - start > 20) fail_msg("%s takes %.1f s for a run of \"%s\"", name, seconds() - start, patterns[p]);
      kf_ids_free(&ids);
    }
    kf_tokenizer_close(t);
    free(json);
  }
  free(text);
  json_decref(file);
}

static void refusals(void **state) {
  (void)state;
  static const struct {
    const char *json, *says;
  } wrong[] = {
      {"[]", "object"},
      {"{}", "model"},
      {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "Unigram"},
      {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "id -1"},
      {"{\"model\":{\"vocab\":{\"a\":4194304},\"merges\":[]}}", "4194304"},
      {"{\"model\":{\"vocab\":{\"a\":1.5},\"merges\":[]}}", "integer"},
      {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "same id"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "merge 0"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "merge 0"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}", "dropout"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"u\"}}", "unk_token"},
      {"{\"model\":{\"vocab\":{},\"merges\":[]}}", "empty vocabulary"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":{\"type\":\"Precompiled\"}}", "Precompiled"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Odd\"}}", "Odd"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":\"Odd\"}}", "Odd"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"post_processor\":{\"type\":\"Odd\"}}", "Odd"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"}}}",
       "regular"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"}}"
       "}",
       "nested"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Odd\"}}", "Odd"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    kf_error e = {0};
    kf_tokenizer *t = NULL;
    assert_int_equal(kf_tokenizer_parse("odd.json", wrong[i].json, strlen(wrong[i].json), NULL, 0, &t, &e), KF_ERROR_INPUT);
    if (!strstr(e.message, wrong[i].says) || !strstr(e.message, "odd.json")) fail_msg("%s says: %s", wrong[i].json, e.message);
  }
  kf_tokenizer *t = open_or_fail(KVFOLD_SOURCE_DIR "/examples/books-7m");
  kf_error e;
  kf_ids ids;
  kf_text text;
  assert_int_equal(kf_tokenizer_encode(t, "ab\xff", 3, 0, &ids, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "offset 2"));
  assert_int_equal(kf_tokenizer_decode(t, &(int32_t){4096}, 1, false, &text, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "4096"));
  kf_tokenizer_close(t);
}

/* ------------------------------------------------------------------------------------------------ files of text */

static const char *put(const char *name, const char *content, size_t bytes) {
  static char path[KF_PATH];
  kf_error e;
  snprintf(path, sizeof path, "%s/%s", scratch, name);
  if (kf_write_file(path, content, bytes, &e) != KF_OK) fail_msg("%s", e.message);
  return path;
}

static void expect_text(const char *path, const char *want, size_t bytes) {
  kf_error e;
  kf_text text;
  if (kf_text_read(path, &text, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(text.bytes, bytes);
  assert_memory_equal(text.data, want, bytes);
  kf_text_free(&text);
}

static void expect_refusal(const char *path, const char *says) {
  kf_error e = {0};
  kf_text text;
  assert_int_equal(kf_text_read(path, &text, &e), KF_ERROR_INPUT);
  if (!strstr(e.message, says) || !strstr(e.message, path)) fail_msg("expected %s: %s", says, e.message);
}

static void texts(void **state) {
  (void)state;
  static const char lines[] = "{\"text\":\"one\\ntwo\",\"source\":1}\n\n{\"text\":\"\"}\r\n{\"text\":\"\\u00e9\"}";
  static const char joined[] = "one\ntwo\n\n\xc3\xa9";
  expect_text(put("a.txt", "plain\n{\"text\":1}\n", 17), "plain\n{\"text\":1}\n", 17);
  expect_text(put("empty.txt", "", 0), "", 0);
  expect_text(put("dos.txt", "a\r\nb\rc\n\r", 8), "a\nb\nc\n\n", 8 - 1);
  expect_text(put("a.jsonl", lines, sizeof lines - 1), joined, sizeof joined - 1);
  char packed[1024];
  size_t half = ZSTD_compress(packed, sizeof packed, lines, 40, 3);
  size_t bytes = half + ZSTD_compress(packed + half, sizeof packed - half, lines + 40, sizeof lines - 41, 3);
  expect_text(put("a.jsonl.zst", packed, bytes), joined, sizeof joined - 1); /* two frames */
  expect_refusal(put("cut.jsonl.zst", packed, bytes - 3), "ends early");
  expect_refusal(put("bad.zst", "not compressed", 14), "Zstandard");
  expect_refusal(put("b.jsonl", "{\"text\":\"a\"}\n{\"text\":2}\n", 24), ":2: no string \"text\"");
  expect_refusal(put("c.jsonl", "{\"text\":\"a\"}\n{\"text\":\n", 22), ":2: not a JSON object");
  expect_refusal(put("d.txt", "ab\nc\xff", 5), ":2: not UTF-8: byte 0xff at offset 4");
  expect_refusal("/nowhere/at/all.txt", "cannot be read");
}

static void long_text_through_zstd(void **state) {
  (void)state;
  enum { BYTES = 3000000 };
  char *text = malloc(BYTES);
  size_t room = ZSTD_compressBound(BYTES);
  char *packed = malloc(room);
  for (size_t i = 0; i < BYTES; i++) text[i] = (char)('a' + i * i % 23);
  expect_text(put("long.txt.zst", packed, ZSTD_compress(packed, room, text, BYTES, 1)), text, BYTES);
  free(text);
  free(packed);
}

static int make_scratch(void **state) {
  (void)state;
  return mkdtemp(scratch) ? 0 : -1;
}

static int remove_scratch(void **state) {
  (void)state;
  return kf_remove_tree(scratch, NULL) == KF_OK ? 0 : -1;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_part_of_a_tokenizer_file),
      cmocka_unit_test(the_example_model),
      cmocka_unit_test(vectors_from_gguf),
      cmocka_unit_test(vectors_from_converted_files),
      cmocka_unit_test(written_files_load_back),
      cmocka_unit_test(long_runs_are_not_quadratic),
      cmocka_unit_test(refusals),
      cmocka_unit_test(texts),
      cmocka_unit_test(long_text_through_zstd),
  };
  return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
