/* kf_chat_render: the tokenizer's own template and special tokens, and what it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "text/tokenizer.h"

static const char tokenizer_json[] =
    "{\"version\": \"1.0\", \"added_tokens\": ["
    "{\"id\": 0, \"content\": \"<unk>\", \"special\": true}, {\"id\": 1, \"content\": \"<s>\", \"special\": true},"
    "{\"id\": 2, \"content\": \"</s>\", \"special\": true}],"
    "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true},"
    "\"decoder\": {\"type\": \"ByteLevel\"},"
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"<unk>\": 0, \"<s>\": 1, \"</s>\": 2, \"a\": 3, \"b\": 4, \"ab\": 5},"
    " \"merges\": [\"a b\"]}}";

static kf_tokenizer *tokenizer_with(const char *config) {
  kf_tokenizer *t = NULL;
  kf_error e = {0};
  if (kf_tokenizer_parse("test", tokenizer_json, strlen(tokenizer_json), config, strlen(config), &t, &e) != KF_OK)
    fail_msg("%s", e.message);
  return t;
}

static void renders_with_special_tokens(void **state) {
  (void)state;
  kf_tokenizer *t = tokenizer_with(
      "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}, \"chat_template\": "
      "\"{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}\\n{% endfor %}"
      "{{ pad_token is defined }} {{ tools is none }} {{ documents is none }}{% if add_generation_prompt %} go{% endif %}\"}");
  const char *messages = "[{\"role\": \"user\", \"content\": \" h\\u00e9 \"}, {\"role\": \"assistant\", \"content\": \"b\"}]";
  kf_text out;
  kf_error e = {0};
  assert_int_equal(kf_chat_render(t, messages, true, &out, &e), KF_OK);
  assert_string_equal(out.data, "<s>user: h\xc3\xa9</s>\n<s>assistant: b</s>\nFalse True True go");
  assert_int_equal(out.bytes, strlen(out.data));
  kf_text_free(&out);
  assert_int_equal(kf_chat_render(t, "[]", false, &out, &e), KF_OK);
  assert_string_equal(out.data, "False True True");
  kf_text_free(&out);
  kf_tokenizer_close(t);
}

static void refused(const char *config, const char *messages, const char *words) {
  kf_tokenizer *t = tokenizer_with(config);
  kf_text out;
  kf_error e = {0};
  assert_int_equal(kf_chat_render(t, messages, false, &out, &e), KF_ERROR_INPUT);
  assert_null(out.data);
  if (!strstr(e.message, words)) fail_msg("expected '%s' in: %s", words, e.message);
  kf_tokenizer_close(t);
}

static void refuses(void **state) {
  (void)state;
  const char *plain = "{\"chat_template\": \"{{ messages[0].content }}\"}";
  refused("{}", "[]", "no chat template");
  refused(plain, "[{]", "messages, line 1: not JSON");
  refused(plain, "{\"role\": \"user\"}", "expected a JSON array");
  refused(plain, "", "not JSON");
  refused("{\"chat_template\": \"{{ raise_exception('Only users speak') }}\"}", "[]", "line 1: Only users speak");
  refused("{\"chat_template\": \"a\\n{% if %}\"}", "[]", "line 2");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(renders_with_special_tokens), cmocka_unit_test(refuses)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
