/* The part of Jinja that chat templates use, rendered as Hugging Face's apply_chat_template renders it
 * (trim_blocks, lstrip_blocks, its extra globals and filters). Nothing is executed but the template itself; depth, steps
 * and output size are bounded. */
#ifndef KF_TEXT_JINJA_H
#define KF_TEXT_JINJA_H

#include <jansson.h>

#include "base/memory.h"

/* variables: an object (messages, bos_token, add_generation_prompt, ...). Errors: line of the template and why, and the
 * message of raise_exception(). */
kf_status kf_jinja_render(const char *source, const json_t *variables, kf_text *out, kf_error *e);

#endif
