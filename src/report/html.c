#include "report/html.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/plot.h"

void kf_html_raw(kf_html *h, const char *format, ...) {
  char line[2048];
  va_list arguments;
  if (h->status != KF_OK) return;
  va_start(arguments, format);
  int n = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  h->status = n >= 0 && n < (int)sizeof line ? kf_buffer_add(&h->out, line, (size_t)n, h->e)
                                             : kf_fail(h->e, KF_ERROR_INPUT, "a line of the page is too long");
}

void kf_html_text(kf_html *h, const char *text) {
  for (const char *p = text; *p && h->status == KF_OK;) {
    size_t n = strcspn(p, "&<>\"'");
    h->status = kf_buffer_add(&h->out, p, n, h->e);
    p += n;
    if (*p) kf_html_raw(h, "&#%d;", *p++);
  }
}

void kf_html_heading(kf_html *h, const char *title, const char *introduction) {
  kf_html_raw(h, "<h2>%s</h2>\n<p>%s</p>\n", title, introduction);
}

/* ------------------------------------------------------------------------------------------------ tables */

void kf_html_column(kf_html *h, const char *name) {
  kf_html_raw(h, "<th scope=\"col\">");
  kf_html_text(h, name);
  kf_html_raw(h, "</th>");
}

void kf_html_table(kf_html *h, const char *const *columns, int count) {
  kf_html_raw(h, "<div class=\"table\"><table>\n<tr>");
  for (int i = 0; i < count; i++) kf_html_column(h, columns[i]);
}

void kf_html_row(kf_html *h, const char *name) {
  kf_html_raw(h, "</tr>\n<tr><th scope=\"row\">");
  kf_html_text(h, name);
  kf_html_raw(h, "</th>");
}

void kf_html_cell(kf_html *h, const char *text) {
  kf_html_raw(h, "<td>");
  kf_html_text(h, text);
  kf_html_raw(h, "</td>");
}

void kf_html_number(kf_html *h, const json_t *value, const char *format) {
  char cell[64] = "-";
  if (json_is_number(value)) snprintf(cell, sizeof cell, format, json_number_value(value));
  kf_html_cell(h, cell);
}

void kf_html_end_table(kf_html *h) {
  kf_html_raw(h, "</tr>\n</table></div>\n");
}

/* ------------------------------------------------------------------------------------------------ figures */

/* gnuplot defines its point shapes in every drawing, by the same names: those of the page's first serve all. */
static kf_status add_drawing(kf_html *h, const kf_buffer *svg) {
  const char *from = svg->data, *defs = strstr(from, "<defs>"), *end = defs ? strstr(defs, "</defs>") : NULL;
  if (h->figures++ && end) {
    KF_TRY(kf_buffer_add(&h->out, from, (size_t)(defs - from), h->e));
    from = end + strlen("</defs>");
  }
  return kf_buffer_add(&h->out, from, strlen(from), h->e);
}

/* Names that gnuplot gives to the parts of every drawing are ids in HTML, where each is given once. */
static void drop_names(kf_buffer *svg) {
  static const char canvas[] = "<g id=\"gnuplot_canvas\">", plot[] = "<g id=\"gnuplot_plot_";
  char *p = svg->data;
  while ((p = strstr(p, "<g id=\"gnuplot_"))) {
    bool known = strncmp(p, canvas, sizeof canvas - 1) == 0 || strncmp(p, plot, sizeof plot - 1) == 0;
    char *end = strchr(p, '>');
    if (known && end) memset(p + 2, ' ', (size_t)(end - p - 2));
    p++;
  }
}

void kf_html_figure(kf_html *h, kf_status s, kf_chart *chart, const char *title, const char *caption) {
  kf_buffer svg = {0};
  kf_error why = {0};
  if (h->status == KF_OK) h->status = s;
  if (h->status == KF_OK && chart->script.bytes && !h->no_plots) {
    kf_status drawn = kf_plot(&chart->script, &svg, &why);
    if (drawn != KF_OK) {
      h->no_plots = drawn == KF_ERROR_IO;
      kf_note(h->hooks, h->no_plots ? "the page has no plots: %s" : "a plot is missing: %s", why.message);
    } else {
      drop_names(&svg);
      kf_html_raw(h, "<figure><h3>");
      kf_html_text(h, title);
      kf_html_raw(h, "</h3>\n<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", chart->width, chart->height);
      kf_html_text(h, title);
      kf_html_raw(h, "\">");
      if (h->status == KF_OK) h->status = add_drawing(h, &svg);
      kf_html_raw(h, "</svg>\n<figcaption>%s</figcaption></figure>\n", caption);
    }
  }
  kf_buffer_free(&svg);
  kf_chart_free(chart);
}
