/* A page as it is written: escaped text, tables, figures. The first failure stays in it, later calls do nothing. */
#ifndef KF_REPORT_HTML_H
#define KF_REPORT_HTML_H

#include "report/charts.h"

typedef struct kf_html {
  kf_buffer out;
  const kf_hooks *hooks;
  bool no_plots; /* gnuplot does not draw here */
  int figures;
  kf_status status;
  kf_error *e;
} kf_html;

void kf_html_raw(kf_html *h, const char *format, ...) __attribute__((format(printf, 2, 3)));
void kf_html_text(kf_html *h, const char *text); /* escaped */
void kf_html_heading(kf_html *h, const char *title, const char *introduction);

/* A row is begun, gets its cells, and ends; a table scrolls within itself where it is wider than the page. */
void kf_html_table(kf_html *h, const char *const *columns, int count);
void kf_html_column(kf_html *h, const char *name); /* one more head, before the first row */
void kf_html_row(kf_html *h, const char *name);
void kf_html_cell(kf_html *h, const char *text);
void kf_html_number(kf_html *h, const json_t *value, const char *format); /* one double; "-" for what is no number */
void kf_html_end_table(kf_html *h);

/* Draws the chart and frees it; s is what making it came to. A chart that is empty, or a page without plots, gives nothing. */
void kf_html_figure(kf_html *h, kf_status s, kf_chart *chart, const char *title, const char *caption);

#endif
