/* A source and what was made of it, measured one after another into one JSON object (docs/CLI.md, "compare"). */
#ifndef KF_REPORT_COMPARE_H
#define KF_REPORT_COMPARE_H

#include "base/json.h"
#include "eval/evaluate.h"
#include "eval/needle.h"

typedef struct kf_comparison {
  const kf_compare_options *options;
  double started; /* seconds of a clock */
  kf_model *source;
  kf_tokenizer *tokenizer;
  kf_ids text;
  int32_t bos;          /* -1: none */
  kf_eval_options eval; /* with the window that all models get */
  kf_kept kept;         /* of the source, so that it runs once */
  kf_needle *needle;    /* [needles] the grid of contexts and depths */
  int needles;
  json_t *text_record, *source_record, *models, *spectra;
} kf_comparison;

/* Opens SRC and measures what concerns it alone. *c is zeroed first and freed by the caller, whatever comes back. */
kf_status kf_comparison_begin(kf_comparison *c, const char *src, const char *text, const kf_compare_options *o, kf_error *e);
/* Measures one more model; seconds: that its conversion took, 0 when not known. */
kf_status kf_comparison_add(kf_comparison *c, const char *dst, const char *name, double seconds, kf_error *e);
/* The object; failed (a list, taken over) may be NULL. */
kf_status kf_comparison_end(kf_comparison *c, json_t *failed, kf_text *json, kf_error *e);
void kf_comparison_free(kf_comparison *c);
/* The last part of a path. */
const char *kf_short_name(const char *path);

#endif
