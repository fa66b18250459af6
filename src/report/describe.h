/* What stands in a model's files, as JSON: nothing here runs it. */
#ifndef KF_REPORT_DESCRIBE_H
#define KF_REPORT_DESCRIBE_H

#include "base/json.h"
#include "model/model.h"

/* An object with "name", "path", cache sizes, "layers" (widths, and how many heads keep which wavelength of RoPE), "recipe" and
 * "engines" (what kf_export would accept). */
kf_status kf_describe_model(const kf_model *m, const char *name, json_t **out, kf_error *e);
/* The source's "spectra": for each layer the singular values of its key and value projections stacked, [2 n_kv d_h, hidden],
 * descending; null for a layer without them. */
kf_status kf_describe_spectra(const kf_model *m, const kf_hooks *hooks, json_t **out, kf_error *e);
/* x, or null where it is not finite. */
json_t *kf_real(double x);

#endif
