# Runs a command with opencryptoki's daemon and a software token, in name
# spaces of its own:
#
#   sh opencryptoki.sh COMMAND...
#
# Without the right to name spaces, as in most containers, root uses the machine's
# own folders, if no token has ever been there, and empties them afterwards.
set -eu
PATH=$PATH:/usr/sbin

if [ "${OCK_STAGE-}" = "" ]; then
	if [ "$(id -u)" = 0 ]; then user=; else user=-Ur; fi
	export OCK_STAGE=private
	if unshare $user -m -i -p -f true 2>/dev/null; then
		exec unshare $user -m -i -p -f --mount-proc --kill-child sh "$0" "$@"
	fi
	if [ "$(id -u)" != 0 ]; then
		echo "this takes root or user name spaces" >&2
		exit 1
	fi
	export OCK_STAGE=machine
fi

state=/var/lib/opencryptoki/swtok
pids=
if [ $OCK_STAGE = private ]; then
	sed 's/^pkcs11:.*/pkcs11:x:0:root/' /etc/group > /dev/shm/ock-group.$$ # Other groups are not in a user name space.
	mount --bind /dev/shm/ock-group.$$ /etc/group
	rm -f /dev/shm/ock-group.$$
	mount -t tmpfs tmpfs /var/lib/opencryptoki
	mount -t tmpfs tmpfs /run
elif [ -e $state/NVTOK.DAT ] || pidof pkcsslotd >/dev/null; then
	echo "opencryptoki is in use on this machine" >&2
	exit 1
fi
for d in icsf swtok tpm lite ccatok ep11tok; do
	mkdir -p /var/lib/opencryptoki/$d/TOK_OBJ /run/lock/opencryptoki/$d
done
chgrp -R pkcs11 /var/lib/opencryptoki /run/lock/opencryptoki
chmod -R 770 /var/lib/opencryptoki /run/lock/opencryptoki

end() {
	pid=$(cat /run/pkcsslotd.pid) && kill "$pid"
	rm -f /run/pkcsslotd.pid
	if [ $OCK_STAGE = machine ]; then
		find $state -type f -delete
	fi
}
pkcsslotd
trap end EXIT

tool="pkcs11-tool --module $(ls /usr/lib/*/pkcs11/libopencryptoki.so) --slot 3"
$tool --init-token --label ock --so-pin 87654321
$tool --login --login-type so --so-pin 87654321 --change-pin --new-pin 76543210
$tool --login --login-type so --so-pin 76543210 --init-pin --new-pin 12345678
"$@"
