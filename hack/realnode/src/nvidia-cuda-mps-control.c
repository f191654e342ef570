/* SIMULATED: remembers that it runs, and what it was told. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_un place = {.sun_family = AF_UNIX};

static int reach(void)
{
    int there = socket(AF_UNIX, SOCK_STREAM, 0);
    if (there >= 0 && connect(there, (struct sockaddr *)&place, sizeof place) == 0) return there;
    close(there);
    return -1;
}

static void serve(int door, const char *log)
{
    char told[4096];
    for (;;) {
        int from = accept(door, NULL, NULL);
        if (from < 0) { sleep(1); continue; }
        struct timeval patience = {.tv_sec = 5};  /* whoever connects and says nothing keeps others waiting no longer */
        setsockopt(from, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        size_t length = 0;
        for (ssize_t more; (more = read(from, told + length, sizeof told - 1 - length)) > 0;) length += more;
        told[length] = 0;
        FILE *kept = fopen(log, "a");
        if (kept) { fprintf(kept, "SIMULATED: %s\n", told); fclose(kept); }
        if (!strncmp(told, "get_", 4)) dprintf(from, "100.0\n");
        int ends = !strncmp(told, "quit", 4);
        if (ends) unlink(place.sun_path);
        close(from);
        if (ends) exit(0);
    }
}

static int start(void)
{
    char log[256];
    const char *folder = getenv("CUDA_MPS_LOG_DIRECTORY");
    int door = socket(AF_UNIX, SOCK_STREAM, 0);
    if (reach() >= 0) { fprintf(stderr, "An instance of this daemon is already running\n"); return 1; }
    snprintf(log, sizeof log, "%s/control.log", folder ? folder : "/var/log/nvidia-mps");
    unlink(place.sun_path);
    if (bind(door, (struct sockaddr *)&place, sizeof place) || listen(door, 8)) { perror(place.sun_path); return 1; }
    FILE *kept = fopen(log, "a");
    if (!kept) { perror(log); return 1; }
    fclose(kept);
    signal(SIGPIPE, SIG_IGN);  /* who asked may be gone */
    if (daemon(0, 0)) { perror("daemon"); return 1; }
    serve(door, log);
    return 0;
}

int main(int count, char **arguments)
{
    char told[4096];
    const char *folder = getenv("CUDA_MPS_PIPE_DIRECTORY");
    snprintf(place.sun_path, sizeof place.sun_path, "%s/control", folder ? folder : "/tmp/nvidia-mps");
    if (count > 1 && !strcmp(arguments[1], "-d")) return start();
    int there = reach();
    if (there < 0) { printf("Cannot find MPS control daemon process\n"); return 1; }
    for (ssize_t more; (more = read(0, told, sizeof told)) > 0;)
        if (write(there, told, more) != more) return 1;
    shutdown(there, SHUT_WR);
    for (ssize_t more; (more = read(there, told, sizeof told)) > 0;)
        if (write(1, told, more) != more) return 1;
    return 0;
}
