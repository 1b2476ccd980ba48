/*
 * Shifts the wall clock, and it alone, of the process that preloads this: by CLOCK_SHIFT_S seconds, back if negative.
 *
 * CLOCK_MONOTONIC, by which leases are judged, timers, and the times of files stay the kernel's. The kernel is asked
 * directly: there is no other library to find and nothing to recurse into.
 */
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t shift_s;

__attribute__((constructor)) static void read_shift(void) {
	const char *text = getenv("CLOCK_SHIFT_S");
	shift_s = text ? strtol(text, NULL, 10) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
	int failed = (int)syscall(SYS_clock_gettime, clock, now);
	if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += shift_s;
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
	int failed = (int)syscall(SYS_gettimeofday, now, zone);
	if (!failed)
		now->tv_sec += shift_s;
	return failed;
}

time_t time(time_t *also) {
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (also)
		*also = now.tv_sec;
	return now.tv_sec;
}
