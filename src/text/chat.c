/* Chat messages through the model's own template, with the variables that Hugging Face's apply_chat_template passes. */
#include "text/jinja.h"
#include "text/tokenizer.h"

static kf_status parse_messages(const char *text, json_t **out, kf_error *e) {
  json_error_t why;
  *out = json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
  if (!*out) return kf_fail(e, KF_ERROR_INPUT, "messages, line %d: not JSON: %s", why.line, why.text);
  if (json_is_array(*out)) return KF_OK;
  json_decref(*out);
  *out = NULL;
  return kf_fail(e, KF_ERROR_INPUT, "messages: expected a JSON array of {\"role\", \"content\"}");
}

/* Takes messages. */
static kf_status collect(const kf_tokenizer *t, json_t *messages, bool add_generation_prompt, json_t **out, kf_error *e) {
  static const char *const special[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
  *out = json_pack("{s:o, s:b, s:n, s:n}", "messages", messages, "add_generation_prompt", add_generation_prompt, "tools",
                   "documents");
  bool bad = !*out;
  for (size_t i = 0; !bad && i < sizeof special / sizeof *special; i++) {
    const char *spelling = kf_tokenizer_special(t, special[i]);
    bad = spelling && json_object_set_new(*out, special[i], json_string(spelling)) != 0;
  }
  return bad ? kf_fail(e, KF_ERROR_MEMORY, "out of memory: the variables of a chat template") : KF_OK;
}

kf_status kf_chat_render(const kf_tokenizer *t, const char *messages_json, bool add_generation_prompt, kf_text *out,
                         kf_error *e) {
  *out = (kf_text){0};
  const char *source = kf_tokenizer_chat_template(t);
  if (!source) return kf_fail(e, KF_ERROR_INPUT, "the model has no chat template");
  json_t *messages, *variables = NULL;
  KF_TRY(parse_messages(messages_json, &messages, e));
  kf_status s = collect(t, messages, add_generation_prompt, &variables, e);
  if (s == KF_OK) s = kf_jinja_render(source, variables, out, e);
  json_decref(variables);
  return s;
}
