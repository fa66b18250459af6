#include "report/plot.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Script and drawing pass through unlinked files: no name, no pipe that could fill up. */
static kf_status run(FILE *in, FILE *out, kf_error *e) {
  char *const argv[] = {"gnuplot", "--default-settings", NULL};
  posix_spawn_file_actions_t actions;
  pid_t child;
  int status = 0;
  if (posix_spawn_file_actions_init(&actions) != 0) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  posix_spawn_file_actions_adddup2(&actions, fileno(in), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, fileno(out), STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  int failed = posix_spawnp(&child, argv[0], &actions, NULL, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) return kf_fail(e, KF_ERROR_IO, "gnuplot cannot be run: %s", strerror(failed));
  if (waitpid(child, &status, 0) < 0) return kf_fail_errno(e, "gnuplot was lost");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT, "gnuplot did not draw a plot (wait status %d)", status);
}

static kf_status read_all(FILE *f, kf_buffer *out, kf_error *e) {
  char piece[1 << 14];
  size_t n;
  rewind(f);
  while ((n = fread(piece, 1, sizeof piece, f)) > 0) KF_TRY(kf_buffer_add(out, piece, n, e));
  return ferror(f) ? kf_fail_errno(e, "cannot read gnuplot's drawing") : KF_OK;
}

/* From behind the description to the end of the root. */
static kf_status cut(const kf_buffer *drawing, kf_buffer *svg, kf_error *e) {
  const char *from = drawing->data ? strstr(drawing->data, "</desc>") : NULL, *to = from ? strstr(from, "</svg>") : NULL;
  if (!to) return kf_fail(e, KF_ERROR_INPUT, "what gnuplot wrote is not its usual SVG");
  from += strlen("</desc>");
  return kf_buffer_add(svg, from, (size_t)(to - from), e);
}

kf_status kf_plot_draw(const kf_buffer *script, kf_buffer *drawing, kf_error *e) {
  FILE *in = tmpfile(), *out = tmpfile();
  kf_status s = in && out ? KF_OK : kf_fail_errno(e, "no temporary file for gnuplot");
  if (s == KF_OK && (fwrite(script->data, 1, script->bytes, in) != script->bytes || fflush(in) != 0))
    s = kf_fail_errno(e, "cannot write gnuplot's script");
  if (s == KF_OK) {
    rewind(in);
    s = run(in, out, e);
  }
  if (s == KF_OK) s = read_all(out, drawing, e);
  if (in) fclose(in);
  if (out) fclose(out);
  return s;
}

kf_status kf_plot(const kf_buffer *script, kf_buffer *svg, kf_error *e) {
  kf_buffer drawing = {0};
  kf_status s = kf_plot_draw(script, &drawing, e);
  if (s == KF_OK) s = cut(&drawing, svg, e);
  kf_buffer_free(&drawing);
  return s;
}

/* Okabe and Ito's colours, which the colour-blind tell apart and which differ in grey. */
const char *kf_plot_colour(size_t series) {
  static const char *const colours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"};
  return colours[series % (sizeof colours / sizeof *colours)];
}

kf_status kf_plot_quote(kf_buffer *script, const char *name, kf_error *e) {
  KF_TRY(kf_buffer_add(script, "'", 1, e));
  for (const char *p = name; *p; p++) {
    bool plain = (unsigned char)*p >= ' ' && *p != 127 && !strchr("'\"`\\$@{}", *p);
    KF_TRY(kf_buffer_add(script, plain ? p : "_", 1, e));
  }
  return kf_buffer_add(script, "'", 1, e);
}
