/* What a teacher predicts, kept in a file: of every token of a sequence the likeliest tokens with their log-probabilities, and that
 * of all others together. A sequence is found by its ids, so that order, batches and epochs do not matter. The file grows by whole
 * sequences, also from several processes at a time, and is mapped. */
#ifndef KF_TRAIN_TEACHER_FILE_H
#define KF_TRAIN_TEACHER_FILE_H

#include "base/file.h"
#include "base/json.h"

/* Of one sequence. */
typedef struct kf_predictions {
  const float *rest;  /* [tokens] log of the probability of all tokens that are not listed */
  const int32_t *id;  /* [tokens, top] ascending */
  const float *log_p; /* [tokens, top] */
} kf_predictions;

typedef struct kf_teacher_file kf_teacher_file;

/* DIRECTORY/teacher.predictions, made when it is not there. Errors: it was made from something else than `made_from` says (the
 * first key that differs is named); it is damaged. */
kf_status kf_teacher_file_open(const char *directory, const json_t *made_from, int top, kf_teacher_file **out, kf_error *e);
void kf_teacher_file_close(kf_teacher_file *f); /* NULL allowed */
const char *kf_teacher_file_path(const kf_teacher_file *f);
/* What is found is valid until the next add. */
bool kf_teacher_file_find(const kf_teacher_file *f, const int32_t *ids, int64_t count, kf_predictions *out);
kf_status kf_teacher_file_add(kf_teacher_file *f, const int32_t *ids, int64_t count, const kf_predictions *p, kf_error *e);

#endif
