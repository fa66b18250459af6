/* What stands beside the weights of a model: tokenizer, chat template, generation settings. */
#ifndef KF_CONVERT_COMPANIONS_H
#define KF_CONVERT_COMPANIONS_H

#include "model/weights.h"
#include "text/tokenizer.h"

/* path: where the weights were found, a directory or a GGUF file. */
kf_status kf_tokenizer_beside(const kf_weights *w, const char *path, kf_tokenizer **out, kf_error *e);
/* Copies them to a directory, or writes there what a GGUF says of them. */
kf_status kf_companions_write(const kf_weights *w, const char *path, const char *directory, kf_error *e);

#endif
