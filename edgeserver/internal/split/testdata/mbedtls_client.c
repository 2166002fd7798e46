/* A TLS client on mbedTLS, for the tests beside it:
 *
 *   mbedtls_client PORT SUITE CURVE CA [CERT KEY] [resume]
 *
 * It sends a line, waits for it to come back, and prints what was negotiated;
 * with "resume" it does so twice, the second time with the session of the first.
 * Any fault is a message and exit status 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>

static void check(int ret, const char *what)
{
	char text[200];

	if (ret >= 0)
		return;
	mbedtls_strerror(ret, text, sizeof text);
	fprintf(stderr, "%s: -0x%04x %s\n", what, (unsigned)-ret, text);
	exit(1);
}

int main(int argc, char **argv)
{
	int resume = argc > 5 && strcmp(argv[argc - 1], "resume") == 0;
	int with_cert = argc - resume == 7;
	mbedtls_entropy_context entropy;
	mbedtls_ctr_drbg_context drbg;
	mbedtls_ssl_config conf;
	mbedtls_x509_crt ca, cert;
	mbedtls_pk_context key;
	mbedtls_ssl_session session;
	const mbedtls_ecp_curve_info *info;
	mbedtls_ecp_group_id curves[3] = {0};
	int suites[2] = {0};
	int round;

	if (argc < 5) {
		fprintf(stderr, "usage: %s PORT SUITE CURVE CA [CERT KEY] [resume]\n", argv[0]);
		return 2;
	}
	mbedtls_entropy_init(&entropy);
	mbedtls_ctr_drbg_init(&drbg);
	mbedtls_ssl_config_init(&conf);
	mbedtls_x509_crt_init(&ca);
	mbedtls_x509_crt_init(&cert);
	mbedtls_pk_init(&key);
	mbedtls_ssl_session_init(&session);
	check(mbedtls_ctr_drbg_seed(&drbg, mbedtls_entropy_func, &entropy, NULL, 0), "random numbers");
	check(mbedtls_x509_crt_parse_file(&ca, argv[4]), argv[4]);
	check(mbedtls_ssl_config_defaults(&conf, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
					  MBEDTLS_SSL_PRESET_DEFAULT), "configuration");
	mbedtls_ssl_conf_rng(&conf, mbedtls_ctr_drbg_random, &drbg);
	mbedtls_ssl_conf_ca_chain(&conf, &ca, NULL);
	mbedtls_ssl_conf_authmode(&conf, MBEDTLS_SSL_VERIFY_REQUIRED);
	if ((suites[0] = mbedtls_ssl_get_ciphersuite_id(argv[2])) == 0) {
		fprintf(stderr, "no cipher suite %s\n", argv[2]);
		return 1;
	}
	mbedtls_ssl_conf_ciphersuites(&conf, suites);
	if ((info = mbedtls_ecp_curve_info_from_name(argv[3])) == NULL) {
		fprintf(stderr, "no curve %s\n", argv[3]);
		return 1;
	}
	curves[0] = info->grp_id;
	curves[1] = MBEDTLS_ECP_DP_SECP256R1; /* that of the certificate */
	mbedtls_ssl_conf_curves(&conf, curves);
	if (with_cert) {
		check(mbedtls_x509_crt_parse_file(&cert, argv[5]), argv[5]);
		check(mbedtls_pk_parse_keyfile(&key, argv[6], NULL), argv[6]);
		check(mbedtls_ssl_conf_own_cert(&conf, &cert, &key), "own certificate");
	}

	for (round = 0; round <= resume; round++) {
		static const char line[] = "hello\n";
		mbedtls_net_context net;
		mbedtls_ssl_context ssl;
		unsigned char answer[sizeof line];
		size_t got = 0;
		mbedtls_ssl_session now;
		int same;

		mbedtls_net_init(&net);
		mbedtls_ssl_init(&ssl);
		mbedtls_ssl_session_init(&now);
		check(mbedtls_net_connect(&net, "127.0.0.1", argv[1], MBEDTLS_NET_PROTO_TCP), "connect");
		check(mbedtls_ssl_setup(&ssl, &conf), "setup");
		check(mbedtls_ssl_set_hostname(&ssl, "www.example.test"), "server name");
		if (round > 0)
			check(mbedtls_ssl_set_session(&ssl, &session), "session");
		mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
		check(mbedtls_ssl_handshake(&ssl), "handshake");
		check(mbedtls_ssl_write(&ssl, (const unsigned char *)line, strlen(line)), "write");
		while (got < strlen(line)) {
			int n = mbedtls_ssl_read(&ssl, answer + got, strlen(line) - got);
			check(n == 0 ? -1 : n, "read");
			got += n;
		}
		if (memcmp(answer, line, strlen(line)) != 0) {
			fprintf(stderr, "another line came back\n");
			return 1;
		}
		check(mbedtls_ssl_get_session(&ssl, &now), "session");
		same = round > 0 && memcmp(now.master, session.master, sizeof now.master) == 0;
		printf("%s resumed=%d\n", mbedtls_ssl_get_ciphersuite(&ssl), same);
		if (round == 0)
			check(mbedtls_ssl_get_session(&ssl, &session), "session");
		mbedtls_ssl_close_notify(&ssl);
		mbedtls_ssl_free(&ssl);
		mbedtls_net_free(&net);
	}
	return 0;
}
