/* gnuplot, run on a script. */
#ifndef KF_REPORT_PLOT_H
#define KF_REPORT_PLOT_H

#include "base/memory.h"

/* What gnuplot draws, by the script's terminal. Errors: gnuplot is not there, or does not take the script. */
kf_status kf_plot_draw(const kf_buffer *script, kf_buffer *drawing, kf_error *e);
/* An SVG as the inside of an <svg> element (no XML head, no root). */
kf_status kf_plot(const kf_buffer *script, kf_buffer *svg, kf_error *e);

/* Of a series; black is left for what others are compared with. */
const char *kf_plot_colour(size_t series);
/* A name in single quotes: nothing in it has a meaning for gnuplot. */
kf_status kf_plot_quote(kf_buffer *script, const char *name, kf_error *e);

#endif
