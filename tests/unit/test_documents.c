/* Conversations as documents: what is learnt of them, and records that cannot be used. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "train/documents.h"

static char directory[64] = "/tmp/kvfold-documents-XXXXXX";

/* The tokenizer of examples/books-7m with this chat template; NULL: none. */
static kf_tokenizer *open_tokenizer(const char *template) {
  char path[KF_PATH];
  kf_tokenizer *t = NULL;
  kf_error e = {0};
  json_t *config = json_pack("{s:s,s:s,s:s}", "tokenizer_class", "PreTrainedTokenizerFast", "bos_token", "<|begin_of_text|>",
                             "eos_token", "<|end_of_text|>");
  if (template) json_object_set_new(config, "chat_template", json_string(template));
  snprintf(path, sizeof path, "%s/tokenizer.json", directory);
  assert_int_equal(kf_copy_file(KVFOLD_SOURCE_DIR "/examples/books-7m/tokenizer.json", path, &e), KF_OK);
  snprintf(path, sizeof path, "%s/tokenizer_config.json", directory);
  assert_int_equal(kf_json_write(path, config, &e), KF_OK);
  json_decref(config);
  if (kf_tokenizer_open(directory, &t, &e) != KF_OK) fail_msg("%s", e.message);
  return t;
}

static const char usual[] = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
                            "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

static void note(void *user, const char *sentence) {
  snprintf(user, 256, "%s", sentence);
}

static kf_status tokenise(const kf_tokenizer *t, const char *name, const char *lines, kf_token_options o, kf_token_file *out,
                          kf_error *e) {
  char path[KF_PATH];
  kf_hooks hooks = {0};
  if (!o.hooks) o.hooks = &hooks;
  o.cache = directory;
  snprintf(path, sizeof path, "%s/%s", directory, name);
  assert_int_equal(kf_write_file(path, lines, strlen(lines), e), KF_OK);
  return kf_token_file_open(path, t, &o, out, e);
}

/* The tokens of a document that are learnt (or are not), as text. */
static void assert_part(const kf_tokenizer *t, const kf_token_file *f, int64_t document, bool learnt, const char *text) {
  int32_t ids[256];
  size_t count = 0;
  kf_text got;
  kf_error e = {0};
  for (int64_t i = kf_document_start(f, document); i < f->end[document]; i++)
    if (f->learnt[i] == learnt) ids[count++] = f->ids[i];
  assert_int_equal(kf_tokenizer_decode(t, ids, count, false, &got, &e), KF_OK);
  assert_string_equal(got.data, text);
  kf_text_free(&got);
}

static const char messages[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello.\"}, {\"role\": \"assistant\", \"content\": \"Good day.\"}, "
    "{\"role\": \"user\", \"content\": \"How are you?\"}, {\"role\": \"assistant\", \"content\": \"Well.\"}, "
    "{\"role\": \"user\", \"content\": \"Bye.\"}]}\n"
    "{\"messages\": [{\"role\": \"assistant\", \"content\": \"First.\"}]}\n";
static const char conversations[] =
    "{\"conversations\": [{\"from\": \"human\", \"value\": \"Hello.\"}, {\"from\": \"gpt\", \"value\": \"Good day.\"}, "
    "{\"from\": \"human\", \"value\": \"How are you?\"}, {\"from\": \"gpt\", \"value\": \"Well.\"}, "
    "{\"from\": \"human\", \"value\": \"Bye.\"}]}\n"
    "{\"conversations\": [{\"from\": \"gpt\", \"value\": \"First.\"}]}\n";

static void answers(void **state) {
  (void)state;
  kf_error e = {0};
  kf_token_file m, c;
  kf_tokenizer *t = open_tokenizer(usual);
  kf_token_options o = {.learnt = KF_LEARN_ANSWERS};
  if (tokenise(t, "m.jsonl", messages, o, &m, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(m.documents, 2);
  assert_part(t, &m, 0, true, " Good day.<|end_of_text|> Well.<|end_of_text|>");
  assert_part(t, &m, 0, false, "<user> Hello.<assistant><user> How are you?<assistant>"); /* what follows the last is left out */
  assert_part(t, &m, 1, true, " First.<|end_of_text|>");
  assert_part(t, &m, 1, false, "<assistant>");
  if (tokenise(t, "c.jsonl", conversations, o, &c, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(c.tokens, m.tokens);
  assert_memory_equal(c.ids, m.ids, (size_t)m.tokens * sizeof *m.ids);
  assert_memory_equal(c.learnt, m.learnt, (size_t)m.tokens);
  kf_token_file_close(&m), kf_token_file_close(&c);
  kf_tokenizer_close(t);
}

static void everything(void **state) {
  (void)state;
  kf_error e = {0};
  kf_token_file f;
  kf_tokenizer *t = open_tokenizer(usual);
  if (tokenise(t, "c.jsonl", conversations, (kf_token_options){0}, &f, &e) != KF_OK) fail_msg("%s", e.message);
  assert_part(t, &f, 0, true,
              "<user> Hello.<assistant> Good day.<|end_of_text|><user> How are you?<assistant> Well.<|end_of_text|><user> Bye.");
  assert_part(t, &f, 0, false, "");
  kf_token_file_close(&f);
  kf_tokenizer_close(t);
}

static void refused(const kf_tokenizer *t, const char *lines, kf_learnt learnt, const char *says) {
  kf_error e = {0};
  kf_token_file f;
  assert_int_equal(tokenise(t, "bad.jsonl", lines, (kf_token_options){.learnt = learnt}, &f, &e), KF_ERROR_INPUT);
  if (!strstr(e.message, says)) fail_msg("'%s' does not say '%s'", e.message, says);
}

static void unusable(void **state) {
  (void)state;
  static const char mixed[] = "{\"text\": \"a b\"}\n{\"messages\": [{\"role\": \"user\"}]}\n{\"messages\": []}\nnothing\n"
                              "{\"text\": \"c\"}\n";
  char told[256] = "";
  kf_hooks hooks = {.note = note, .user = told};
  kf_error e = {0};
  kf_token_file f;
  kf_tokenizer *t = open_tokenizer(usual);
  refused(t, mixed, KF_LEARN_ALL, "bad.jsonl:2: neither");
  refused(t, "{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n", KF_LEARN_ALL,
          "bad.jsonl:2: not a JSON object: unable to decode byte 0xff");
  if (tokenise(t, "mixed.jsonl", mixed, (kf_token_options){.skip = true, .hooks = &hooks}, &f, &e) != KF_OK)
    fail_msg("%s", e.message);
  assert_int_equal(f.documents, 2);
  if (!strstr(told, ": 3 records")) fail_msg("'%s'", told);
  kf_token_file_close(&f);
  kf_tokenizer_close(t);
  t = open_tokenizer("{% for m in messages %}{{ m.content if loop.last else 'earlier' }}{% endfor %}");
  refused(t, messages, KF_LEARN_ANSWERS, "bad.jsonl:1: the chat template changes earlier messages");
  kf_tokenizer_close(t);
  t = open_tokenizer(NULL);
  refused(t, messages, KF_LEARN_ALL, "bad.jsonl:1: the model has no chat template");
  kf_tokenizer_close(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(answers), cmocka_unit_test(everything), cmocka_unit_test(unusable)};
  if (!mkdtemp(directory)) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  kf_remove_tree(directory, NULL);
  return failed;
}
