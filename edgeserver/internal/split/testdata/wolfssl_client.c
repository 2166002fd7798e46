/* A TLS client on wolfSSL, for the tests beside it:
 *
 *   wolfssl_client PORT SUITE CURVE CA [CERT KEY] [resume]
 *   wolfssl_client list        prints the cipher suites that it has
 *
 * It sends a line, waits for it to come back, and prints what was negotiated;
 * with "resume" it does so twice, the second time with the session of the first.
 * Any fault is a message and exit status 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <sys/socket.h>

#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

static void die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static void check(WOLFSSL *ssl, int ret, const char *what)
{
	char text[80];

	if (ret > 0)
		return;
	fprintf(stderr, "%s: %s\n", what, wolfSSL_ERR_error_string(wolfSSL_get_error(ssl, ret), text));
	exit(1);
}

static int dial(int port)
{
	struct sockaddr_in addr = {0};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	addr.sin_family = AF_INET;
	addr.sin_port = htons(port);
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof addr) != 0)
		die("connect");
	return fd;
}

static int curve(const char *name)
{
	if (strcmp(name, "x25519") == 0)
		return WOLFSSL_ECC_X25519;
	if (strcmp(name, "secp256r1") == 0)
		return WOLFSSL_ECC_SECP256R1;
	if (strcmp(name, "secp384r1") == 0)
		return WOLFSSL_ECC_SECP384R1;
	die("unknown curve");
	return 0;
}

int main(int argc, char **argv)
{
	int resume = argc > 5 && strcmp(argv[argc - 1], "resume") == 0;
	int with_cert = argc - resume == 7;
	WOLFSSL_CTX *ctx;
	WOLFSSL_SESSION *session = NULL;
	int round;

	wolfSSL_Init();
	if (argc == 2 && strcmp(argv[1], "list") == 0) {
		static char names[8192];

		if (wolfSSL_get_ciphers(names, sizeof names) != WOLFSSL_SUCCESS)
			die("list");
		puts(names);
		return 0;
	}
	if (argc < 5) {
		fprintf(stderr, "usage: %s PORT SUITE CURVE CA [CERT KEY] [resume]\n", argv[0]);
		return 2;
	}
	if ((ctx = wolfSSL_CTX_new(wolfTLSv1_2_client_method())) == NULL)
		die("context");
	if (wolfSSL_CTX_set_cipher_list(ctx, argv[2]) != WOLFSSL_SUCCESS)
		die("no such cipher suite");
	if (wolfSSL_CTX_load_verify_locations(ctx, argv[4], NULL) != WOLFSSL_SUCCESS)
		die("authorities");
	if (with_cert && (wolfSSL_CTX_use_certificate_file(ctx, argv[5], WOLFSSL_FILETYPE_PEM) != WOLFSSL_SUCCESS ||
			  wolfSSL_CTX_use_PrivateKey_file(ctx, argv[6], WOLFSSL_FILETYPE_PEM) != WOLFSSL_SUCCESS))
		die("own certificate");
	if (wolfSSL_CTX_UseSupportedCurve(ctx, curve(argv[3])) != WOLFSSL_SUCCESS ||
	    wolfSSL_CTX_UseSupportedCurve(ctx, WOLFSSL_ECC_SECP256R1) != WOLFSSL_SUCCESS)
		die("curve"); /* the second is that of the certificate */
	if (resume && wolfSSL_CTX_UseSessionTicket(ctx) != WOLFSSL_SUCCESS)
		die("tickets");
	wolfSSL_CTX_UseSNI(ctx, WOLFSSL_SNI_HOST_NAME, "www.example.test", strlen("www.example.test"));

	for (round = 0; round <= resume; round++) {
		static const char line[] = "hello\n";
		char answer[sizeof line];
		int got = 0, fd = dial(atoi(argv[1]));
		WOLFSSL *ssl = wolfSSL_new(ctx);

		if (ssl == NULL || wolfSSL_check_domain_name(ssl, "www.example.test") != WOLFSSL_SUCCESS)
			die("connection");
		wolfSSL_set_fd(ssl, fd);
		if (round > 0)
			wolfSSL_set_session(ssl, session);
		check(ssl, wolfSSL_connect(ssl), "handshake");
		check(ssl, wolfSSL_write(ssl, line, strlen(line)), "write");
		while (got < (int)strlen(line)) {
			int n = wolfSSL_read(ssl, answer + got, strlen(line) - got);
			check(ssl, n, "read");
			got += n;
		}
		if (memcmp(answer, line, strlen(line)) != 0)
			die("another line came back");
		printf("%s resumed=%d\n", wolfSSL_get_cipher_name(ssl), wolfSSL_session_reused(ssl));
		if (round == 0 && resume && (session = wolfSSL_get1_session(ssl)) == NULL)
			die("no session");
		wolfSSL_shutdown(ssl);
		wolfSSL_free(ssl);
		close(fd);
	}
	return 0;
}
