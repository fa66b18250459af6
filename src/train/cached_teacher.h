/* A teacher whose predictions come from a file, and go into it where they are missing.
 *
 * Of a row the file has log p_k of the teacher's K likeliest tokens S (at the temperature) and log r of all others together. The
 * loss is the KL divergence with these others as one lump:
 *     D = sum over S of p_k log(p_k / q_k) + r log(r / r_q),   r_q = sum of q_k outside S,
 * with the gradient q_k - p_k by the logit / T of a k in S and q_k - r q_k / r_q outside. That is the plain KL divergence from the
 * teacher with its tail spread as the student's is, p_k = r q_k / r_q: such a row of teacher logits is made here. */
#ifndef KF_TRAIN_CACHED_TEACHER_H
#define KF_TRAIN_CACHED_TEACHER_H

#include "train/objective.h"

typedef struct kf_cached_options {
  const char *directory, *teacher; /* teacher: MODEL */
  kf_model_options model;          /* what the teacher is opened with, at the first sequence that is missing */
  kf_device *device;               /* the student's */
  int top, vocabulary;             /* vocabulary: the student's */
  float temperature;
} kf_cached_options;

/* Errors: another vocabulary; those of kf_teacher_file_open(). Borrows the texts. */
kf_status kf_cached_teacher_open(const kf_cached_options *o, kf_cached_teacher **out, kf_error *e);
void kf_cached_teacher_free(kf_cached_teacher *c); /* NULL allowed */
/* Finds the predictions of a micro-batch, or lets the teacher make them. A sequence runs alone, so that what is kept depends on
 * nothing but its ids. */
kf_status kf_cached_teacher_prepare(kf_cached_teacher *c, const kf_window *w, kf_error *e);
/* A kf_teacher_logits with the kf_cached_teacher. */
kf_status kf_cached_teacher_logits(void *cached, int64_t first, int64_t m, const float *student, float *logits, kf_error *e);
bool kf_cached_teacher_ran(const kf_cached_teacher *c); /* since it was opened */
const struct kf_teacher_file *kf_cached_teacher_file(const kf_cached_teacher *c);

#endif
