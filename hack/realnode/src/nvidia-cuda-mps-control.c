/* SIMULATED MPS control daemon (-d) and its client. The daemon logs every command; it answers `get_...` and `quit`. */
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
    int daemon_socket = socket(AF_UNIX, SOCK_STREAM, 0);
    if (daemon_socket >= 0 && connect(daemon_socket, (struct sockaddr *)&place, sizeof place) == 0) return daemon_socket;
    close(daemon_socket);
    return -1;
}

static void serve(int listener, const char *log)
{
    char text[4096];
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) { sleep(1); continue; }
        struct timeval patience = {.tv_sec = 5};  /* a silent client must not block others for longer */
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        size_t length = 0;
        for (ssize_t more; (more = read(client, text + length, sizeof text - 1 - length)) > 0;) length += more;
        text[length] = 0;
        FILE *file = fopen(log, "a");
        if (file) { fprintf(file, "SIMULATED: %s\n", text); fclose(file); }
        if (!strncmp(text, "get_", 4)) dprintf(client, "100.0\n");
        int quits = !strncmp(text, "quit", 4);
        if (quits) unlink(place.sun_path);
        close(client);
        if (quits) exit(0);
    }
}

static int start(void)
{
    char log[256];
    const char *folder = getenv("CUDA_MPS_LOG_DIRECTORY");
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (reach() >= 0) { fprintf(stderr, "An instance of this daemon is already running\n"); return 1; }
    snprintf(log, sizeof log, "%s/control.log", folder ? folder : "/var/log/nvidia-mps");
    unlink(place.sun_path);
    if (bind(listener, (struct sockaddr *)&place, sizeof place) || listen(listener, 8)) { perror(place.sun_path); return 1; }
    FILE *file = fopen(log, "a");
    if (!file) { perror(log); return 1; }
    fclose(file);
    signal(SIGPIPE, SIG_IGN);  /* a client may have gone */
    if (daemon(0, 0)) { perror("daemon"); return 1; }
    serve(listener, log);
    return 0;
}

int main(int count, char **arguments)
{
    char text[4096];
    const char *folder = getenv("CUDA_MPS_PIPE_DIRECTORY");
    snprintf(place.sun_path, sizeof place.sun_path, "%s/control", folder ? folder : "/tmp/nvidia-mps");
    if (count > 1 && !strcmp(arguments[1], "-d")) return start();
    int daemon_socket = reach();
    if (daemon_socket < 0) { printf("Cannot find MPS control daemon process\n"); return 1; }
    for (ssize_t more; (more = read(0, text, sizeof text)) > 0;)
        if (write(daemon_socket, text, more) != more) return 1;
    shutdown(daemon_socket, SHUT_WR);
    for (ssize_t more; (more = read(daemon_socket, text, sizeof text)) > 0;)
        if (write(1, text, more) != more) return 1;
    return 0;
}
