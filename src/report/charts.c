#include "report/charts.h"

#include <math.h>
#include <string.h>

#include "report/plot.h"

/* Of a drawing; as wide as a phone shows at its own size. */
enum { WIDTH = 380, HEIGHT = 250, KEY_ROW = 17, SPECTRUM_POINTS = 96 };

static const int points[] = {7, 5, 9, 13, 6, 4, 8, 12}, dashes[] = {1, 2, 4, 3, 5};
enum { POINTS = sizeof points / sizeof *points, DASHES = sizeof dashes / sizeof *dashes };

/* A chart as it grows: its data, and the clauses of its plot command. The first failure stays in `status`. */
typedef struct draft {
  kf_buffer data, plot, open; /* open: the series at work */
  int series, named;          /* all; those in the key */
  size_t longest;             /* name */
  double low, high;           /* of y */
  kf_status status;
  kf_error *e;
} draft;

typedef struct look {
  const char *x, *y; /* labels */
  double log_from;   /* y is logarithmic where high / low is above */
  const char *more;  /* further commands */
} look;

void kf_chart_free(kf_chart *c) {
  kf_buffer_free(&c->script);
}

static void keep(draft *d, kf_status s) {
  if (d->status == KF_OK) d->status = s;
}

static void add_point(draft *d, double x, double y) {
  d->low = fmin(d->low, y);
  d->high = fmax(d->high, y);
  keep(d, kf_buffer_printf(&d->open, d->e, "%.7g %.7g\n", x, y));
}

static void add_title(draft *d, const char *name) {
  d->named++;
  if (strlen(name) > d->longest) d->longest = strlen(name);
  keep(d, kf_buffer_printf(&d->plot, d->e, " title "));
  keep(d, kf_plot_quote(&d->plot, name, d->e));
}

/* Closes the open series; one without points is left out. name NULL: not in the key. */
static void end_series(draft *d, const char *name, const char *style) {
  if (d->open.bytes) {
    keep(d, kf_buffer_printf(&d->data, d->e, "$d%d << EOD\n%sEOD\n", d->series, d->open.data));
    keep(d, kf_buffer_printf(&d->plot, d->e, "%s $d%d %s", d->series ? "," : "plot", d->series, style));
    if (name)
      add_title(d, name);
    else
      keep(d, kf_buffer_printf(&d->plot, d->e, " notitle"));
    d->series++;
  }
  kf_buffer_free(&d->open);
  d->open = (kf_buffer){0};
}

static kf_status finish(draft *d, const look *l, kf_chart *out, kf_error *e) {
  *out = (kf_chart){.width = WIDTH, .height = HEIGHT};
  int columns = d->longest > 20 ? 1 : d->longest > 11 ? 2 : 3;
  if (d->status == KF_OK && d->series) {
    if (d->named) out->height += KEY_ROW * ((d->named + columns - 1) / columns + 1);
    keep(d,
         kf_buffer_printf(&out->script, e,
                          "set terminal svg size %d,%d font 'sans-serif,13' noenhanced linewidth 1\nset encoding utf8\n"
                          "set key below height 1 font ',12' maxcols %d samplen 2 reverse Left\nset grid lc rgb '#dddddd' lt 1\n"
                          "set border 3 lc rgb '#555555'\nset tics nomirror\nset xlabel '%s'\nset ylabel '%s'\n",
                          out->width, out->height, columns, l->x, l->y));
    if (l->log_from > 0 && d->low > 0 && d->high > l->log_from * d->low)
      keep(d, kf_buffer_printf(&out->script, e, "set logscale y\n"));
    keep(d, kf_buffer_printf(&out->script, e, "%s\n%s%s\n", l->more ? l->more : "", d->data.data, d->plot.data));
  }
  kf_buffer_free(&d->data);
  kf_buffer_free(&d->plot);
  kf_buffer_free(&d->open);
  if (d->status != KF_OK) kf_chart_free(out);
  return d->status;
}

static draft begin(kf_error *e) {
  return (draft){.low = INFINITY, .high = -INFINITY, .e = e};
}

/* ------------------------------------------------------------------------------------------------ values and styles */

static const json_t *models_of(const json_t *comparison) {
  return json_object_get(comparison, "models");
}

static const char *text(const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  return s ? s : "";
}

/* False: not a number. */
static bool real(const json_t *value, double *out) {
  *out = json_number_value(value);
  return json_is_number(value);
}

static bool same_method(const json_t *a, const json_t *b) {
  return strcmp(text(a, "method"), text(b, "method")) == 0;
}

static bool first_of_method(const json_t *models, size_t index) {
  for (size_t i = 0; i < index; i++)
    if (same_method(json_array_get(models, i), json_array_get(models, index))) return false;
  return true;
}

/* The colour tells the method, dashes and points which model of it; of one method alone the colours tell the models. */
static void style_of(const json_t *models, size_t index, const char *with, char style[96]) {
  size_t methods = 0, colour = 0, variant = 0, count = json_array_size(models);
  for (size_t i = 0; i < count; i++) {
    if (i < index && same_method(json_array_get(models, i), json_array_get(models, index))) variant++;
    if (!first_of_method(models, i)) continue;
    if (same_method(json_array_get(models, i), json_array_get(models, index))) colour = methods;
    methods++;
  }
  if (methods == 1) colour = index;
  snprintf(style, 96, "with %s lc rgb '%s' dt %d pt %d ps 0.6 lw 2", with, kf_plot_colour(colour), dashes[variant % DASHES],
           points[variant % POINTS]);
}

static const char source_style[] = "with linespoints lc rgb 'black' pt 1 ps 0.6 lw 2";

/* ------------------------------------------------------------------------------------------------ charts of lines */

kf_status kf_chart_tradeoff(const json_t *comparison, const char *key, const char *label, kf_chart *out, kf_error *e) {
  draft d = begin(e);
  const json_t *models = models_of(comparison), *source = json_object_get(comparison, "source");
  size_t i, k;
  json_t *m, *other;
  json_array_foreach(models, i, m) {
    char style[128];
    double y;
    if (!first_of_method(models, i)) continue;
    json_array_foreach(models, k, other) if (same_method(m, other) && real(json_object_get(other, key), &y))
        add_point(&d, json_number_value(json_object_get(other, "cache_bytes_per_token")), y);
    size_t methods = 0;
    for (k = 0; k < i; k++) methods += first_of_method(models, k);
    snprintf(style, sizeof style, "using 1:2 smooth unique with linespoints lc rgb '%s' pt %d ps 0.8 lw 2",
             kf_plot_colour(methods), points[methods % POINTS]);
    end_series(&d, *text(m, "method") ? text(m, "method") : text(m, "name"), style);
  }
  if (strcmp(key, "perplexity_ratio") == 0 && d.series) {
    add_point(&d, json_number_value(json_object_get(source, "cache_bytes_per_token")), 1);
    end_series(&d, "source", "with points lc rgb 'black' pt 3 ps 1 lw 2");
  }
  double all = json_number_value(json_object_get(source, "cache_bytes_per_token"));
  char more[192];
  snprintf(more, sizeof more, "set xrange [0:%.0f]\nset xtics ('0' 0, '%.0f' %.0f, '%.0f' %.0f, '%.0f' %.0f, '%.0f' %.0f)",
           1.04 * all, all / 4, all / 4, all / 2, all / 2, all * 0.75, all * 0.75, all, all);
  return finish(&d, &(look){"cache, bytes per token (bf16)", label, 4, more}, out, e);
}

static void add_positions(draft *d, const json_t *edges, const json_t *model) {
  size_t i;
  json_t *value;
  double y;
  json_array_foreach(json_object_get(model, "perplexity_by_position"), i, value) {
    double from = json_number_value(json_array_get(edges, i)), to = json_number_value(json_array_get(edges, i + 1));
    if (real(value, &y)) add_point(d, (from + to) / 2, y);
  }
}

kf_status kf_chart_positions(const json_t *comparison, kf_chart *out, kf_error *e) {
  draft d = begin(e);
  const json_t *models = models_of(comparison), *source = json_object_get(comparison, "source"),
               *edges = json_object_get(json_object_get(comparison, "text"), "position_edges");
  size_t i;
  json_t *m;
  add_positions(&d, edges, source);
  end_series(&d, "source", source_style);
  json_array_foreach(models, i, m) {
    char style[96];
    style_of(models, i, "linespoints", style);
    add_positions(&d, edges, m);
    end_series(&d, text(m, "name"), style);
  }
  return finish(&d, &(look){"place in the window, tokens", "perplexity", 4, "set logscale x 2"}, out, e);
}

kf_status kf_chart_layers(const json_t *comparison, const char *key, const char *label, kf_chart *out, kf_error *e) {
  draft d = begin(e);
  const json_t *models = models_of(comparison);
  size_t i, layer;
  json_t *m, *record;
  json_array_foreach(models, i, m) {
    char style[96];
    double y;
    json_array_foreach(json_object_get(m, "layers"), layer, record) if (real(json_object_get(record, key), &y))
        add_point(&d, (double)layer, y);
    style_of(models, i, "linespoints", style);
    end_series(&d, text(m, "name"), style);
  }
  return finish(&d, &(look){"layer", label, 20, NULL}, out, e);
}

kf_status kf_chart_needles(const json_t *comparison, int context, kf_chart *out, kf_error *e) {
  draft d = begin(e);
  const json_t *models = models_of(comparison);
  for (size_t i = 0; i <= json_array_size(models); i++) { /* the source comes first */
    const json_t *m = i ? json_array_get(models, i - 1) : json_object_get(comparison, "source");
    size_t k;
    json_t *n;
    char style[96];
    double y;
    json_array_foreach(json_object_get(m, "needles"), k, n) {
      if (json_integer_value(json_object_get(n, "context")) == context && real(json_object_get(n, "logprob"), &y))
        add_point(&d, json_number_value(json_object_get(n, "depth")), y);
    }
    if (i) style_of(models, i - 1, "linespoints", style);
    end_series(&d, i ? text(m, "name") : "source", i ? style : source_style);
  }
  return finish(&d, &(look){"place of the number in the text, %", "log-probability, nats", 0, "set xrange [-3:103]"}, out, e);
}

/* ------------------------------------------------------------------------------------------------ spectra, RoPE */

/* Singular values over the largest, evenly thinned. */
static void add_spectrum(draft *d, const json_t *values, double layer) {
  size_t count = json_array_size(values), steps = count < SPECTRUM_POINTS ? count : SPECTRUM_POINTS;
  double first = json_number_value(json_array_get(values, 0));
  for (size_t i = 0; i < steps && first > 0; i++) {
    size_t at = steps > 1 ? i * (count - 1) / (steps - 1) : 0;
    double y = json_number_value(json_array_get(values, at)) / first;
    if (y > 0) keep(d, kf_buffer_printf(&d->open, d->e, "%zu %.5g %g\n", at + 1, y, layer));
  }
}

/* Each layer's rank of one model, on the layer's curve. */
static void add_ranks(draft *d, const json_t *spectra, const json_t *model) {
  size_t i;
  json_t *layer;
  json_array_foreach(json_object_get(model, "layers"), i, layer) {
    const json_t *values = json_array_get(spectra, i);
    json_int_t rank = json_integer_value(json_object_get(layer, "kv_lora_rank"));
    if (rank < 1 || (size_t)rank > json_array_size(values)) continue;
    double first = json_number_value(json_array_get(values, 0)),
           y = json_number_value(json_array_get(values, (size_t)rank - 1)) / first;
    if (first > 0 && y > 0) add_point(d, (double)rank, y);
  }
}

kf_status kf_chart_spectra(const json_t *comparison, kf_chart *out, kf_error *e) {
  draft d = begin(e);
  const json_t *models = models_of(comparison), *spectra = json_object_get(comparison, "spectra");
  size_t i, most = 0;
  json_t *m, *values;
  char more[256];
  json_array_foreach(spectra, i, values) {
    add_spectrum(&d, values, (double)i);
    if (json_array_size(values) > most) most = json_array_size(values);
    end_series(&d, NULL, "using 1:2:3 with lines lc palette lw 1");
  }
  json_array_foreach(models, i, m) {
    char style[96];
    style_of(models, i, "points", style);
    add_ranks(&d, spectra, m);
    end_series(&d, text(m, "name"), style);
  }
  snprintf(more, sizeof more,
           "set logscale y\nset yrange [1e-4<*:1.2]\nset xtics %zu\nset palette defined (0 '#cccccc', 1 '#333333')\n"
           "set cblabel 'layer'\nset colorbox",
           most < 4 ? 1 : most / 4);
  return finish(&d, &(look){"index of the singular value", "singular value / the largest", 0, more}, out, e);
}

/* Ratio of neighbouring wavelengths of the source, so that cells meet. */
static double wavelength_step(const json_t *source) {
  const json_t *rope = json_object_get(json_array_get(json_object_get(source, "layers"), 0), "rope");
  size_t count = json_array_size(rope);
  double first = json_number_value(json_array_get(json_array_get(rope, 0), 0)),
         last = json_number_value(json_array_get(json_array_get(rope, count ? count - 1 : 0), 0));
  return count > 1 && first > 0 && last > first ? pow(last / first, 1 / (double)(count - 1)) : 2;
}

kf_status kf_chart_rope(const json_t *comparison, size_t model, kf_chart *out, kf_error *e) {
  draft d = begin(e);
  const json_t *m = json_array_get(models_of(comparison), model), *layers = json_object_get(m, "layers"), *layer, *pair;
  double half = sqrt(wavelength_step(json_object_get(comparison, "source"))), most = 1, wavelength;
  size_t i, k;
  for (i = 0; i < json_array_size(layers); i++) {
    layer = json_object_get(json_array_get(layers, i), "rope");
    for (k = 0; k < json_array_size(layer); k++) {
      pair = json_array_get(layer, k);
      double heads = json_number_value(json_array_get(pair, 1));
      if (!real(json_array_get(pair, 0), &wavelength)) continue;
      if (heads > most) most = heads;
      keep(&d, kf_buffer_printf(&d.open, e, "%.6g %zu %.6g %.6g %g %g %g\n", wavelength, i, wavelength / half, wavelength * half,
                                (double)i - 0.5, (double)i + 0.5, heads));
    }
  }
  end_series(&d, NULL, "using 1:2:3:4:5:6:7 with boxxyerror fs solid 1 noborder lc palette");
  char more[512];
  const json_t *all =
      json_object_get(json_array_get(json_object_get(json_object_get(comparison, "source"), "layers"), 0), "rope");
  double last = json_number_value(json_array_get(json_array_get(all, json_array_size(all) ? json_array_size(all) - 1 : 0), 0));
  snprintf(more, sizeof more,
           "set logscale x\nset format x '%%.0s%%c'\nset xrange [5:%.6g]\nset yrange [-0.5:%g]\nset cbrange [0:%g]\n"
           "set cbtics %g\nset palette defined (0 '#ffffff', 0.3 '#9ecae1', 1 '#08306b')\nset cblabel 'heads'",
           fmax(last * half, 20), (double)json_array_size(layers) - 0.5, most, most > 4 ? ceil(most / 4) : 1);
  return finish(&d, &(look){"wavelength of the pair, tokens", "layer", 0, more}, out, e);
}
