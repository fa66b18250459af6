/* Text that a model was calibrated on says nothing about it. */
#ifndef KF_REPORT_HELD_OUT_H
#define KF_REPORT_HELD_OUT_H

#include "base/file.h"
#include "base/json.h"

/* KF_ERROR_INPUT when `text` is one of the files, by its real path or byte for byte. `model` stands in the message. A file that is
 * no longer there cannot be compared: a note says so. */
kf_status kf_held_out(const char *text, const char *const *files, int count, const char *model, const kf_hooks *hooks,
                      kf_error *e);
/* The same with the calibration files in the recipe of a MODEL. */
kf_status kf_held_out_model(const char *text, const char *model, const kf_hooks *hooks, kf_error *e);

#endif
