/* The page's plots as gnuplot scripts, from the object of a comparison (docs/CLI.md). */
#ifndef KF_REPORT_CHARTS_H
#define KF_REPORT_CHARTS_H

#include "base/json.h"
#include "base/memory.h"

typedef struct kf_chart {
  kf_buffer script;  /* empty: there is nothing to draw */
  int width, height; /* of the drawing */
} kf_chart;
void kf_chart_free(kf_chart *c);

/* A figure of every model (key: "perplexity_ratio" or "kl") over the bytes of its cache, one line a method. */
kf_status kf_chart_tradeoff(const json_t *comparison, const char *key, const char *label, kf_chart *out, kf_error *e);
kf_status kf_chart_positions(const json_t *comparison, kf_chart *out, kf_error *e);
/* A figure of every layer (key: "attention_error", ...), one line a model. */
kf_status kf_chart_layers(const json_t *comparison, const char *key, const char *label, kf_chart *out, kf_error *e);
kf_status kf_chart_spectra(const json_t *comparison, kf_chart *out, kf_error *e);
/* Which wavelengths of RoPE each layer of one model keeps. */
kf_status kf_chart_rope(const json_t *comparison, size_t model, kf_chart *out, kf_error *e);
kf_status kf_chart_needles(const json_t *comparison, int context, kf_chart *out, kf_error *e);

#endif
