/* Training data: records to documents, the file that keeps them, packing, mixing, and positions. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "train/batches.h"

static char directory[64] = "/tmp/kvfold-batches-XXXXXX";
static kf_tokenizer *tokenizer;
static kf_device *device;
static kf_token_options options;

static void path_of(char path[KF_PATH], const char *name) {
  snprintf(path, KF_PATH, "%s/%s", directory, name);
}

static const char *write_text(char path[KF_PATH], const char *name, const char *text) {
  kf_error e = {0};
  path_of(path, name);
  assert_int_equal(kf_write_file(path, text, strlen(text), &e), KF_OK);
  return path;
}

static kf_token_file open_file(const char *path) {
  kf_token_file f;
  kf_error e = {0};
  if (kf_token_file_open(path, tokenizer, &options, &f, &e) != KF_OK) fail_msg("%s", e.message);
  return f;
}

/* Ids of a plain text. */
static kf_ids encode(const char *text) {
  kf_ids ids;
  kf_error e = {0};
  assert_int_equal(kf_tokenizer_encode(tokenizer, text, strlen(text), KF_ENCODE_PLAIN, &ids, &e), KF_OK);
  return ids;
}

static void documents(void **state) {
  (void)state;
  char path[KF_PATH];
  kf_token_file f = open_file(write_text(path, "a.jsonl", "{\"text\": \"Once upon a time\"}\n\n{\"text\": \"there was\"}\n"));
  kf_ids first = encode("Once upon a time"), second = encode("there was");
  int eos = kf_tokenizer_eos(tokenizer) >= 0, bos = kf_tokenizer_adds_bos(tokenizer);
  assert_int_equal(f.documents, 2);
  assert_int_equal(f.end[0], (int64_t)first.count + eos + bos);
  assert_int_equal(f.tokens, (int64_t)(first.count + second.count) + 2 * (eos + bos));
  assert_memory_equal(f.ids + bos, first.data, first.count * sizeof *first.data);
  if (eos) assert_int_equal(f.ids[f.end[0] - 1], kf_tokenizer_eos(tokenizer));
  for (int64_t i = 0; i < f.tokens; i++) assert_int_equal(f.learnt[i], 1);
  kf_token_file_close(&f);
  kf_ids_free(&first);
  kf_ids_free(&second);
}

static void pairs(void **state) {
  (void)state;
  char path[KF_PATH];
  options.pairs = true;
  kf_token_file f =
      open_file(write_text(path, "p.json", "[{\"prompt\": \"Say \", \"chosen\": \"yes\", \"rejected\": \"no no\"}]"));
  kf_ids prompt = encode("Say "), yes = encode("yes"), no = encode("no no");
  int eos = kf_tokenizer_eos(tokenizer) >= 0, bos = kf_tokenizer_adds_bos(tokenizer);
  assert_int_equal(f.documents, 2);
  assert_int_equal(f.end[0], (int64_t)(prompt.count + yes.count) + eos + bos);
  assert_int_equal(f.tokens - f.end[0], (int64_t)(prompt.count + no.count) + eos + bos);
  for (int64_t i = 0; i < f.end[0]; i++) assert_int_equal(f.learnt[i], i >= (int64_t)prompt.count + bos);
  kf_token_file_close(&f);
  options.pairs = false;
  kf_ids_free(&prompt), kf_ids_free(&yes), kf_ids_free(&no);
}

static void refused(const char *path, const char *says) {
  kf_token_file f;
  kf_error e = {0};
  assert_int_equal(kf_token_file_open(path, tokenizer, &options, &f, &e), KF_ERROR_INPUT);
  if (!strstr(e.message, says)) fail_msg("'%s' does not say '%s'", e.message, says);
}

static void bad_input(void **state) {
  (void)state;
  char path[KF_PATH];
  refused("/nowhere/x.jsonl", "/nowhere/x.jsonl");
  refused(write_text(path, "empty.jsonl", "\n"), "nothing to train on");
  refused(write_text(path, "b.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}\n"), "b.jsonl:2");
  refused(write_text(path, "c.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"\n"), "c.jsonl:2");
  refused(write_text(path, "d.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n"), "d.jsonl:2");
  refused(write_text(path, "e.txt", "line\n\xff\n"), "e.txt:2");
  refused(write_text(path, "f.json", "{\"text\": \"a\"}"), "JSON array");
  options.skip = true;
  kf_token_file f = open_file(
      write_text(path, "g.jsonl", "{\"text\": \"a\"}\nnot json\n{\"text\": 3}\n{\"text\": \"\xff\"}\n[1]\n{\"text\": \"b\"}\n"));
  assert_int_equal(f.documents, 2);
  kf_token_file_close(&f);
  options.skip = false;
}

/* Files of the cache and their times. */
static int cached(struct stat *newest) {
  char command[256], line[KF_PATH];
  int count = 0;
  snprintf(command, sizeof command, "ls -tr %s/cache", directory);
  FILE *p = popen(command, "r");
  assert_non_null(p);
  while (fgets(line, sizeof line, p)) {
    char path[2 * KF_PATH];
    line[strcspn(line, "\n")] = 0;
    snprintf(path, sizeof path, "%s/cache/%s", directory, line);
    assert_int_equal(stat(path, newest), 0);
    count++;
  }
  pclose(p);
  return count;
}

/* A text is tokenised once; another text under the same name is tokenised again; a broken file is made anew. */
static void caching(void **state) {
  (void)state;
  char path[KF_PATH];
  struct stat a, b;
  kf_token_file f = open_file(write_text(path, "cache.jsonl", "{\"text\": \"one two three\"}\n"));
  kf_token_file_close(&f);
  int before = cached(&a);
  f = open_file(path);
  kf_token_file_close(&f);
  assert_int_equal(cached(&b), before);
  assert_true(a.st_ino == b.st_ino && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec);
  write_text(path, "cache.jsonl", "{\"text\": \"one two three four five\"}\n");
  f = open_file(path);
  kf_ids ids = encode("one two three four five");
  assert_int_equal(f.tokens, (int64_t)ids.count + (kf_tokenizer_eos(tokenizer) >= 0) + kf_tokenizer_adds_bos(tokenizer));
  kf_ids_free(&ids);
  kf_token_file_close(&f);
  assert_int_equal(cached(&b), before + 1);
}

/* ---------------------------------------------------------------------------------------------- packing */

/* Documents of 1, 2, ... tokens with ids that say document and place. */
static kf_token_file numbered(int documents, int32_t base) {
  kf_token_file f = {.documents = documents};
  int64_t *end = malloc((size_t)documents * sizeof *end);
  for (int i = 0; i < documents; i++) end[i] = f.tokens += i % 7 + 1;
  int32_t *ids = malloc((size_t)f.tokens * sizeof *ids);
  uint8_t *learnt = malloc((size_t)f.tokens);
  for (int i = 0; i < documents; i++)
    for (int64_t j = i ? end[i - 1] : 0; j < end[i]; j++) {
      ids[j] = base + 10 * i + (int32_t)(j - (i ? end[i - 1] : 0));
      learnt[j] = ids[j] % 3 != 0;
    }
  f.ids = ids, f.learnt = learnt, f.end = end;
  return f;
}

static void free_numbered(kf_mix *m, const kf_token_file *f, int count) {
  for (int i = 0; i < count; i++) {
    free((void *)(uintptr_t)f[i].ids), free((void *)(uintptr_t)f[i].learnt), free((void *)(uintptr_t)f[i].end);
    m->source[i].file = (kf_token_file){0};
  }
  kf_mix_free(m);
}

static void packing(void **state) {
  (void)state;
  kf_error e = {0};
  for (int isolated = 0; isolated < 2; isolated++) {
    kf_token_file f = numbered(30, 0);
    kf_mix m;
    kf_window w;
    int seen[300] = {0};
    assert_int_equal(kf_mix_create(&f, NULL, 1, false, isolated, 5, &m, &e), KF_OK);
    assert_int_equal(kf_window_create(device, 64, &w, &e), KF_OK);
    for (int round = 0; m.source->at.epoch == 0; round++) {
      w.count = w.sequences = 0;
      kf_mix_window(&m, 11, &w);
      kf_mix_window(&m, 5, &w);
      assert_int_equal(w.count, 16);
      int64_t covered = 0;
      for (int s = 0; s < w.sequences; s++) {
        assert_int_equal(w.sequence[s].first, covered);
        covered += w.sequence[s].count;
        for (int64_t i = w.sequence[s].first; i < covered; i++) {
          bool same = w.target[i] == w.ids[i] + 1;
          assert_true(isolated ? same : same || w.target[i] % 10 == 0);
          if (i + 1 < covered) assert_int_equal(w.ids[i + 1], w.target[i]);
          assert_true(w.weight[i] == (float)(w.target[i] % 3 != 0));
          if (m.source->at.epoch == 0) seen[w.target[i]]++;
        }
      }
      assert_int_equal(covered, w.count);
    }
    int most = 0;
    for (int i = 0; i < 300; i++) most = seen[i] > most ? seen[i] : most;
    assert_int_equal(most, 1);
    kf_window_free(&w);
    free_numbered(&m, &f, 1);
  }
}

/* Shares come out within one window; a noted position gives the same windows again; another seed another order. */
static void mixing(void **state) {
  (void)state;
  kf_error e = {0};
  kf_token_file f[2] = {numbered(20, 0), numbered(40, 1000)};
  const double weights[] = {1, 3};
  kf_mix m;
  kf_window a, b;
  assert_int_equal(kf_mix_create(f, weights, 2, false, true, 5, &m, &e), KF_OK);
  assert_int_equal(kf_window_create(device, 8000, &a, &e), KF_OK);
  assert_int_equal(kf_window_create(device, 8000, &b, &e), KF_OK);
  for (int i = 0; i < 37; i++) kf_mix_window(&m, 9, &a);
  assert_true(llabs(4 * m.source[0].at.drawn - 37) <= 4);
  json_t *noted = kf_mix_state(&m);
  a.count = a.sequences = 0;
  for (int i = 0; i < 50; i++) kf_mix_window(&m, 9, &a);
  assert_int_equal(kf_mix_restore(&m, noted, &e), KF_OK);
  for (int i = 0; i < 50; i++) kf_mix_window(&m, 9, &b);
  assert_memory_equal(a.ids, b.ids, 450 * sizeof *a.ids);
  assert_memory_equal(a.target, b.target, 450 * sizeof *a.ids);
  json_array_remove(noted, 0);
  assert_int_equal(kf_mix_restore(&m, noted, &e), KF_ERROR_INPUT);
  json_decref(noted);
  int64_t before[40], changed = 0;
  memcpy(before, m.source[1].order, sizeof before);
  m.seed = 6;
  m.source[0].at.offset = m.source[1].at.offset = 0;
  noted = kf_mix_state(&m);
  assert_int_equal(kf_mix_restore(&m, noted, &e), KF_OK);
  for (int i = 0; i < 40; i++) changed += m.source[1].order[i] != before[i];
  assert_true(changed > 20);
  json_decref(noted);
  kf_window_free(&a);
  kf_window_free(&b);
  free_numbered(&m, f, 2);
}

static void pair_windows(void **state) {
  (void)state;
  kf_error e = {0};
  kf_token_file f = numbered(20, 0);
  kf_mix m;
  kf_window w;
  assert_int_equal(kf_mix_create(&f, NULL, 1, true, false, 1, &m, &e), KF_OK);
  assert_int_equal(kf_window_create(device, 400, &w, &e), KF_OK);
  for (int i = 0; i < 10; i++) kf_mix_pair(&m, 4, &w);
  assert_int_equal(w.sequences, 20);
  assert_int_equal(m.source->at.epoch, 1);
  for (int i = 0; i < 20; i += 2) {
    assert_true(w.sequence[i].count <= 4 && w.sequence[i + 1].count <= 4);
    if (w.sequence[i].count && w.sequence[i + 1].count) {
      int chosen = w.ids[w.sequence[i].first] / 10, rejected = w.ids[w.sequence[i + 1].first] / 10;
      assert_int_equal(chosen % 2, 0);
      assert_int_equal(rejected, chosen + 1);
    }
  }
  kf_window_free(&w);
  free_numbered(&m, &f, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(documents),   cmocka_unit_test(pairs),   cmocka_unit_test(bad_input),
                                     cmocka_unit_test(caching),     cmocka_unit_test(packing), cmocka_unit_test(mixing),
                                     cmocka_unit_test(pair_windows)};
  kf_error e = {0};
  static char cache[128];
  if (!mkdtemp(directory)) return 1;
  snprintf(cache, sizeof cache, "%s/cache", directory);
  options = (kf_token_options){.cache = cache};
  if (kf_tokenizer_from_directory(KVFOLD_SOURCE_DIR "/examples/books-7m", &tokenizer, &e) != KF_OK) return 1;
  if (kf_device_open_cpu(KF_COMPUTE_F32, 1, &device, &e) != KF_OK) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  kf_device_close(device);
  kf_tokenizer_close(tokenizer);
  kf_remove_tree(directory, NULL);
  return failed;
}
