/* kf_report_write: the object of a comparison as one HTML page without script or outside parts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "report/html.h"

static const char style[] =
    "body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1rem;color:#1a1a1a;background:#fff}"
    "h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.25rem;margin:2.2rem 0 .3rem}h3{font-size:1rem;margin:0}"
    "p{margin:.4rem 0;max-width:48rem}.meta,figcaption,footer{color:#555;font-size:.85rem}"
    ".verdict{border-left:.3rem solid #0072b2;background:#f2f6fa;padding:.6rem 1rem;font-size:1.08rem;max-width:none}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.2rem;margin:1rem 0}"
    "figure{margin:0;min-width:0}svg{display:block;width:100%;max-width:30rem;height:auto}"
    ".table{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap;vertical-align:top}"
    "tr:first-child th{border-bottom:2px solid #888;white-space:normal;vertical-align:bottom}"
    "th:first-child{text-align:left;position:sticky;left:0;background:#fff;max-width:14rem;white-space:normal;overflow-wrap:"
    "anywhere}"
    "th[scope=row]{min-width:8rem}"
    "th{font-weight:600}td.why{text-align:left;white-space:normal;min-width:16rem}summary{cursor:pointer;color:#0b5394}"
    "ul.why{padding-left:1.2rem;max-width:48rem;font-size:.9rem}pre{font-size:.8rem;overflow-x:auto}"
    "@media(max-width:30rem){th,td{padding:.25rem .35rem}}"
    "@media print{body{max-width:none;font-size:11pt}figure,table{break-inside:avoid}.plots{grid-template-columns:1fr 1fr}}";

typedef struct page {
  kf_html html;
  const json_t *all, *source, *models;
} page;

static const char *text(const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  return s ? s : "";
}

static double real(const json_t *o, const char *key) {
  return json_number_value(json_object_get(o, key));
}

/* The source, then the models. */
static const json_t *entry(const page *p, size_t index) {
  return index ? json_array_get(p->models, index - 1) : p->source;
}

static size_t entries(const page *p) {
  return json_array_size(p->models) + 1;
}

/* ------------------------------------------------------------------------------------------------ top */

static void write_head(page *p) {
  kf_html *h = &p->html;
  const json_t *t = json_object_get(p->all, "text");
  size_t models = json_array_size(p->models);
  kf_html_raw(h, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                 "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
  kf_html_text(h, text(p->source, "name"));
  kf_html_raw(h, ": what its conversion cost</title>\n<style>");
  if (h->status == KF_OK) h->status = kf_buffer_add(&h->out, style, sizeof style - 1, h->e);
  kf_html_raw(h, "</style>\n</head>\n<body>\n<h1>");
  kf_html_text(h, text(p->source, "name"));
  kf_html_raw(h, ": what its conversion cost</h1>\n<p class=\"meta\">%zu converted model%s against the source, on ", models,
              models == 1 ? "" : "s");
  kf_html_text(h, text(t, "path"));
  kf_html_raw(h, " (%.0f windows of %.0f tokens, %.0f predicted; computed in %s)</p>\n<p class=\"verdict\">", real(t, "windows"),
              real(t, "window"), real(t, "predicted"), text(p->all, "compute"));
  kf_html_text(h, text(p->all, "verdict"));
  kf_html_raw(h, "</p>\n");
}

static const char *needle_score(const json_t *model, char out[48]) {
  const json_t *list = json_object_get(model, "needles");
  size_t count = json_array_size(list);
  int found = 0;
  for (size_t i = 0; i < count; i++) found += json_is_true(json_object_get(json_array_get(list, i), "found"));
  if (!count) return "-";
  snprintf(out, 48, "%d of %zu", found, count);
  return out;
}

static void write_summary(page *p) {
  static const char *const columns[] = {"model",
                                        "cache, of the source's",
                                        "perplexity, times the source's",
                                        "KL, nats a token",
                                        "perplexity",
                                        "same likeliest token",
                                        "numbers found",
                                        "cache, bytes a token",
                                        "method",
                                        "conversion, s"};
  kf_html *h = &p->html;
  kf_html_heading(h, "Summary",
                  "Cache in bf16. KL is the mean divergence of the predicted distributions from the source's, over "
                  "the whole vocabulary: 0 for a model that predicts the same.");
  kf_html_table(h, columns, sizeof columns / sizeof *columns);
  for (size_t i = 0; i < entries(p); i++) {
    const json_t *m = entry(p, i), *agreement = json_object_get(m, "top1_agreement");
    char cell[48];
    kf_html_row(h, text(m, "name"));
    snprintf(cell, sizeof cell, "%.1f%%", i ? 100 * real(m, "cache_part") : 100);
    kf_html_cell(h, cell);
    kf_html_number(h, json_object_get(m, "perplexity_ratio"), "%.3f");
    kf_html_number(h, json_object_get(m, "kl"), "%.4f");
    kf_html_number(h, json_object_get(m, "perplexity"), "%.3f");
    snprintf(cell, sizeof cell, "%.1f%%", 100 * json_number_value(agreement));
    kf_html_cell(h, agreement ? cell : "-");
    kf_html_cell(h, needle_score(m, cell));
    kf_html_number(h, json_object_get(m, "cache_bytes_per_token"), "%.0f");
    kf_html_cell(h, i ? text(m, "method") : "source");
    kf_html_number(h, json_object_get(m, "conversion_seconds"), "%.1f");
  }
  kf_html_end_table(h);
}

/* ------------------------------------------------------------------------------------------------ sections */

static void write_tradeoff(page *p) {
  kf_html *h = &p->html;
  kf_chart c = {0};
  kf_html_heading(h, "Quality against cache", "Down and to the left is better: fewer bytes a token, less lost.");
  kf_html_raw(h, "<div class=\"plots\">\n");
  kf_status s = kf_chart_tradeoff(p->all, "perplexity_ratio", "perplexity / the source''s", &c, h->e);
  kf_html_figure(h, s, &c, "Perplexity", "1: as good as the source.");
  s = kf_chart_tradeoff(p->all, "kl", "KL, nats a token", &c, h->e);
  kf_html_figure(h, s, &c, "Divergence", "0: the same predictions as the source.");
  kf_html_raw(h, "</div>\n");
}

static void write_memory(page *p) {
  static const char *const columns[] = {"model", "4k tokens", "32k tokens", "128k tokens"}, *const keys[] = {"4096", "32768",
                                                                                                             "131072"};
  kf_html *h = &p->html;
  kf_html_heading(h, "Memory of the cache", "MiB of one sequence, in bf16, all layers.");
  kf_html_table(h, columns, 4);
  for (size_t i = 0; i < entries(p); i++) {
    const json_t *m = entry(p, i), *bytes = json_object_get(m, "cache_bytes_at");
    kf_html_row(h, text(m, "name"));
    for (int k = 0; k < 3; k++) {
      char cell[32];
      snprintf(cell, sizeof cell, "%.1f", real(bytes, keys[k]) / (1 << 20));
      kf_html_cell(h, cell);
    }
  }
  kf_html_end_table(h);
}

static void write_positions(page *p) {
  static const char *const columns[] = {"model"};
  kf_html *h = &p->html;
  kf_chart c = {0};
  const json_t *edges = json_object_get(json_object_get(p->all, "text"), "position_edges");
  size_t bins = json_array_size(edges);
  kf_html_heading(h, "Perplexity by position",
                  "A curve that rises above the source's to the right: the conversion hurts long contexts most. Larger windows "
                  "(--window) reach further.");
  kf_html_raw(h, "<div class=\"plots\">\n");
  kf_status s = kf_chart_positions(p->all, &c, h->e);
  kf_html_figure(h, s, &c, "By place in the window", "Mean over the places from a power of two to the next.");
  kf_html_raw(h, "</div>\n<details><summary>As a table</summary>\n");
  kf_html_table(h, columns, 1);
  for (size_t b = 0; b + 1 < bins; b++) {
    char name[48];
    snprintf(name, sizeof name, "%lld to %lld", (long long)json_integer_value(json_array_get(edges, b)),
             (long long)json_integer_value(json_array_get(edges, b + 1)) - 1);
    kf_html_column(h, name);
  }
  for (size_t i = 0; i < entries(p); i++) {
    const json_t *values = json_object_get(entry(p, i), "perplexity_by_position");
    kf_html_row(h, text(entry(p, i), "name"));
    for (size_t b = 0; b + 1 < bins; b++) kf_html_number(h, json_array_get(values, b), "%.3f");
  }
  kf_html_end_table(h);
  kf_html_raw(h, "</details>\n");
}

/* A figure of every layer and model as a table. */
static void layer_table(page *p, const char *title, const char *key, const char *format) {
  static const char *const columns[] = {"layer"};
  kf_html *h = &p->html;
  kf_html_raw(h, "<details><summary>%s</summary>\n", title);
  kf_html_table(h, columns, 1);
  for (size_t i = 1; i < entries(p); i++) kf_html_column(h, text(entry(p, i), "name"));
  for (size_t layer = 0; layer < json_array_size(json_object_get(p->source, "layers")); layer++) {
    char name[32];
    snprintf(name, sizeof name, "%zu", layer);
    kf_html_row(h, name);
    for (size_t i = 1; i < entries(p); i++)
      kf_html_number(h, json_object_get(json_array_get(json_object_get(entry(p, i), "layers"), layer), key), format);
  }
  kf_html_end_table(h);
  kf_html_raw(h, "</details>\n");
}

static void write_layers(page *p) {
  kf_html *h = &p->html;
  kf_chart c = {0};
  kf_html_heading(
      h, "Error of each layer",
      "Distance from the source's vectors relative to their length, the mean over tokens. First each layer by itself, "
      "fed with the source's hidden states; then the whole model on its own, where errors add up.");
  kf_html_raw(h, "<div class=\"plots\">\n");
  kf_status s = kf_chart_layers(p->all, "attention_error", "relative error", &c, h->e);
  kf_html_figure(h, s, &c, "Output of the attention, layer by itself", "0: the layer attends as the source's does.");
  s = kf_chart_layers(p->all, "cumulative_error", "relative error", &c, h->e);
  kf_html_figure(h, s, &c, "Residual stream behind the layer, whole model", "0: the hidden states of the source.");
  kf_html_raw(h, "</div>\n");
  layer_table(p, "Attention, layer by itself, as a table", "attention_error", "%.4f");
  layer_table(p, "Residual stream, layer by itself, as a table", "residual_error", "%.4f");
  layer_table(p, "Residual stream, whole model, as a table", "cumulative_error", "%.4f");
}

static void write_ranks(page *p) {
  kf_html *h = &p->html;
  kf_chart c = {0};
  kf_html_heading(
      h, "Singular values and ranks",
      "The source's key and value projections, stacked, layer by layer; a point is the rank (width of the latents) "
      "that a model chose for a layer. The higher a curve at a point, the more a plain factorisation leaves out there.");
  kf_html_raw(h, "<div class=\"plots\">\n");
  kf_status s = kf_chart_spectra(p->all, &c, h->e);
  kf_html_figure(h, s, &c, "Spectra of the source's layers", "Each curve begins at 1, its largest singular value.");
  kf_html_raw(h, "</div>\n");
  layer_table(p, "Ranks as a table", "kv_lora_rank", "%.0f");
}

static bool same_rope(const json_t *a, const json_t *b) {
  const json_t *one = json_object_get(a, "layers"), *other = json_object_get(b, "layers");
  bool same = json_array_size(one) == json_array_size(other);
  for (size_t i = 0; same && i < json_array_size(one); i++)
    same = json_equal(json_object_get(json_array_get(one, i), "rope"), json_object_get(json_array_get(other, i), "rope"));
  return same;
}

/* "A, B": the models that keep the pairs of the model of that number; "" where an earlier one keeps the same. */
static void rope_title(const page *p, size_t model, char out[512]) {
  int n = 0;
  *out = 0;
  for (size_t i = 0; i < json_array_size(p->models) && n < 511; i++) {
    if (!same_rope(json_array_get(p->models, i), json_array_get(p->models, model))) continue;
    if (i < model) return;
    n += snprintf(out + n, 512 - (size_t)n, "%s%s", n ? ", " : "", text(json_array_get(p->models, i), "name"));
  }
}

static void write_rope(page *p) {
  kf_html *h = &p->html;
  kf_html_heading(
      h, "Rotated pairs (RoPE) that were kept",
      "Each layer's pairs by their wavelength, the tokens of one full turn: short waves to the left tell near places "
      "apart, long ones far places. The darker, the more heads (or the more often) the layer keeps it; white is left out.");
  kf_html_raw(h, "<div class=\"plots\">\n");
  for (size_t i = 0; i < json_array_size(p->models); i++) {
    kf_chart c = {0};
    char title[512];
    rope_title(p, i, title);
    if (!*title) continue;
    kf_status s = kf_chart_rope(p->all, i, &c, h->e);
    kf_html_figure(h, s, &c, title, "");
  }
  kf_html_raw(h, "</div>\n");
}

/* One context's needles as a plot; begins where the source's list changes to it. */
static void needle_plots(page *p, const json_t *list) {
  kf_html *h = &p->html;
  json_int_t last = 0;
  kf_html_raw(h, "<div class=\"plots\">\n");
  for (size_t i = 0; i < json_array_size(list); i++) {
    json_int_t context = json_integer_value(json_object_get(json_array_get(list, i), "context"));
    char title[48];
    kf_chart c = {0};
    if (context == last) continue;
    last = context;
    snprintf(title, sizeof title, "Hidden in %lld tokens", (long long)context);
    kf_status s = kf_chart_needles(p->all, (int)context, &c, h->e);
    kf_html_figure(h, s, &c, title, "0: the number is certain.");
  }
  kf_html_raw(h, "</div>\n");
}

static void write_needles(page *p) {
  static const char *const columns[] = {"model"};
  kf_html *h = &p->html;
  const json_t *list = json_object_get(p->source, "needles");
  size_t count = json_array_size(list);
  if (!count) return;
  kf_html_heading(h, "Finding a number in the text",
                  "A sentence with a random number stands at a place of the text; at the end the number is asked for. The mean "
                  "log-probability of its tokens tells how sure the model is of it; found (&#10003;): the likeliest continuation "
                  "is the number.");
  needle_plots(p, list);
  kf_html_raw(h, "<details><summary>As a table</summary>\n");
  kf_html_table(h, columns, 1);
  for (size_t i = 0; i < count; i++) {
    char name[64];
    const json_t *n = json_array_get(list, i);
    snprintf(name, sizeof name, "%.0f tokens, at %.0f%%", real(n, "context"), real(n, "depth"));
    kf_html_column(h, name);
  }
  for (size_t i = 0; i < entries(p); i++) {
    kf_html_row(h, text(entry(p, i), "name"));
    for (size_t k = 0; k < count; k++) {
      const json_t *n = json_array_get(json_object_get(entry(p, i), "needles"), k);
      kf_html_number(h, json_object_get(n, "logprob"), json_is_true(json_object_get(n, "found")) ? "%.2f \xe2\x9c\x93" : "%.2f");
    }
  }
  kf_html_end_table(h);
  kf_html_raw(h, "</details>\n");
}

static const json_t *engine(const page *p, size_t model, size_t format) {
  return json_array_get(json_object_get(entry(p, model), "engines"), format);
}

static bool gives(const page *p, size_t model, const char *reason) {
  for (size_t k = 0; k < json_array_size(json_object_get(entry(p, model), "engines")); k++)
    if (strcmp(text(engine(p, model, k), "reason"), reason) == 0) return true;
  return false;
}

/* One reason behind the models that give it; told where the first of them stands. */
static void write_reason(page *p, size_t model, size_t format) {
  kf_html *h = &p->html;
  const char *reason = text(engine(p, model, format), "reason");
  for (size_t i = 1; i < model; i++)
    if (gives(p, i, reason)) return;
  for (size_t k = 0; k < format; k++)
    if (strcmp(text(engine(p, model, k), "reason"), reason) == 0) return;
  kf_html_raw(h, "<li>");
  kf_html_text(h, text(entry(p, model), "name"));
  for (size_t i = model + 1; i < entries(p); i++) {
    if (!gives(p, i, reason)) continue;
    kf_html_raw(h, ", ");
    kf_html_text(h, text(entry(p, i), "name"));
  }
  kf_html_raw(h, ": ");
  kf_html_text(h, reason);
  kf_html_raw(h, "</li>\n");
}

static void write_engines(page *p) {
  static const char *const columns[] = {"model", "deepseek-v3", "gguf"};
  kf_html *h = &p->html;
  kf_html_heading(
      h, "Engines that load it",
      "<code>kvfold export</code> writes a model for stock engines: as deepseek-v3, a directory for those that read "
      "Hugging Face's (such as Transformers); as gguf, a file for llama.cpp and what is built on it. kvfold itself runs all "
      "of them. A dash: not converted or grouped as before, what loads its family loads it as it is.");
  kf_html_table(h, columns, 3);
  for (size_t i = 1; i < entries(p); i++) {
    kf_html_row(h, text(entry(p, i), "name"));
    for (int c = 1; c < 3; c++) {
      const char *answer = "-";
      for (size_t k = 0; k < json_array_size(json_object_get(entry(p, i), "engines")); k++)
        if (strcmp(text(engine(p, i, k), "format"), columns[c]) == 0)
          answer = json_is_true(json_object_get(engine(p, i, k), "loads")) ? "yes" : "no";
      kf_html_cell(h, answer);
    }
  }
  kf_html_end_table(h);
  kf_html_raw(h, "<ul class=\"why\">\n");
  for (size_t i = 1; i < entries(p); i++)
    for (size_t k = 0; k < json_array_size(json_object_get(entry(p, i), "engines")); k++)
      if (*text(engine(p, i, k), "reason")) write_reason(p, i, k);
  kf_html_raw(h, "</ul>\n");
}

static void write_failed(page *p) {
  static const char *const columns[] = {"model", "what kvfold said"};
  const json_t *failed = json_object_get(p->all, "failed");
  kf_html *h = &p->html;
  if (!json_array_size(failed)) return;
  kf_html_heading(h, "Conversions that failed", "These could not be made or measured.");
  kf_html_table(h, columns, 2);
  for (size_t i = 0; i < json_array_size(failed); i++) {
    kf_html_row(h, text(json_array_get(failed, i), "name"));
    kf_html_raw(h, "<td class=\"why\">");
    kf_html_text(h, text(json_array_get(failed, i), "sentence"));
    kf_html_raw(h, "</td>");
  }
  kf_html_end_table(h);
}

static void write_recipes(page *p) {
  kf_html *h = &p->html;
  kf_html_heading(h, "How they were made", "The recipes as the models carry them.");
  for (size_t i = 1; i < entries(p); i++) {
    char *recipe = json_dumps(json_object_get(entry(p, i), "recipe"), JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(7));
    kf_html_raw(h, "<details><summary>");
    kf_html_text(h, text(entry(p, i), "name"));
    kf_html_raw(h, "</summary><pre>");
    kf_html_text(h, recipe ? recipe : "");
    kf_html_raw(h, "</pre></details>\n");
    free(recipe);
  }
}

/* ------------------------------------------------------------------------------------------------ the page */

static void write_body(page *p) {
  kf_html *h = &p->html;
  write_summary(p);
  write_tradeoff(p);
  if (h->no_plots)
    kf_html_raw(h, "<p><strong>Plots need gnuplot, which did not run here when this page was made.</strong></p>\n");
  write_memory(p);
  write_positions(p);
  write_layers(p);
  write_ranks(p);
  write_rope(p);
  write_needles(p);
  write_engines(p);
  write_failed(p);
  write_recipes(p);
}

kf_status kf_report_write(const char *path, const char *json, size_t bytes, const kf_hooks *hooks, kf_error *e) {
  json_t *all;
  KF_TRY(kf_json_parse("the comparison", json, bytes, &all, e));
  page p = {.html = {.hooks = hooks, .e = e},
            .all = all,
            .source = json_object_get(all, "source"),
            .models = json_object_get(all, "models")};
  write_head(&p);
  write_body(&p);
  kf_html_raw(&p.html, "<footer><p>kvfold %s, %.0f s</p></footer>\n</body>\n</html>\n", text(all, "version"),
              real(all, "seconds"));
  if (p.html.status == KF_OK) p.html.status = kf_write_file(path, p.html.out.data, p.html.out.bytes, e);
  kf_buffer_free(&p.html.out);
  json_decref(all);
  return p.html.status;
}
