/* Errors are values: fill a kf_error with one sentence and return its status. */
#ifndef KF_BASE_ERROR_H
#define KF_BASE_ERROR_H

#include "kvfold/kvfold.h"

/* Writes the sentence into e (NULL allowed) and returns status. */
kf_status kf_fail(kf_error *e, kf_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same with ": <strerror(errno)>" appended; status KF_ERROR_IO. */
kf_status kf_fail_errno(kf_error *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define KF_TRY(expression)                \
  do {                                    \
    kf_status kf_try_ = (expression);     \
    if (kf_try_ != KF_OK) return kf_try_; \
  } while (0)

/* For functions that clean up at one label named `done` with a local `kf_status s`. */
#define KF_GO(expression)                       \
  do {                                          \
    if ((s = (expression)) != KF_OK) goto done; \
  } while (0)

/* Tells hooks about progress; KF_ERROR_CANCELLED when the hook asks to stop. hooks may be NULL. */
kf_status kf_progress(const kf_hooks *hooks, const char *what, double done, double total, kf_error *e);
void kf_note(const kf_hooks *hooks, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
