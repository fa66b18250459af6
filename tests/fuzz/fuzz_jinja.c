/* A chat template is text from a model's files: whatever it says, it renders or is refused. */
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"

static const char variables[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \" be brief \"}, {\"role\": \"user\", \"content\": \"h\u00e9 "
    "\U0001f642\"},"
    " {\"role\": \"assistant\", \"content\": \"<think>x</think>y\", \"tool_calls\": [{\"function\": {\"name\": \"f\", "
    "\"arguments\": {\"a\": 1.5}}}]}],"
    " \"tools\": null, \"add_generation_prompt\": true, \"bos_token\": \"<s>\", \"eos_token\": \"</s>\","
    " \"n\": 7, \"x\": 2.5, \"t\": true, \"s\": \" Hello \\n\", \"words\": [\"b\", \"A\"], \"nums\": [3, 1, 2], \"d\": {\"b\": "
    "1, \"a\": [2]}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  kf_text out;
  kf_error e;
  char *source = malloc(size + 1);
  json_t *all = json_loads(variables, 0, NULL);
  if (source && all) {
    if (size) memcpy(source, data, size);
    source[size] = 0;
    if (kf_jinja_render(source, all, &out, &e) == KF_OK) kf_text_free(&out);
  }
  json_decref(all);
  free(source);
  return 0;
}
