/* gnuplot, run on a script. */
#ifndef KF_REPORT_PLOT_H
#define KF_REPORT_PLOT_H

#include "base/memory.h"

/* The drawing as the inside of an <svg> element (no XML head, no root). Errors: gnuplot is not there, or does not take the
 * script. */
kf_status kf_plot(const kf_buffer *script, kf_buffer *svg, kf_error *e);

#endif
