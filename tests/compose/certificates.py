"""Certificates that a cluster must refuse, made with openssl: of another authority, and expired ones."""

import pathlib

from cluster import command, docker

ROLES = ("router", "prefill", "decode")
CA_CONFIG = """
[ca]
default_ca = own
[own]
database = {dir}/index
new_certs_dir = {dir}
serial = {dir}/serial
default_md = sha256
policy = any
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
subjectAltName = DNS:{server_name},DNS:{role}
extendedKeyUsage = serverAuth,clientAuth
keyUsage = digitalSignature
"""
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def authority(directory):
    """Writes ca.pem and ca.key of a cluster of its own."""
    (directory / "index").touch()
    (directory / "serial").write_text("01\n")
    command(
        "openssl", "req", "-x509", *KEY, "-days", "3650", "-subj", "/CN=kvferry cluster authority",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", str(directory / "ca.key"),
        "-out", str(directory / "ca.pem"),
    )


def issue(directory, role, server_name, start, end):
    """Writes NAME.pem and NAME.key with a validity of the caller's choice, as YYYYMMDDHHMMSSZ."""
    config, request = directory / "openssl.cnf", directory / f"{role}.csr"
    config.write_text(CA_CONFIG.format(dir=directory, role=role, server_name=server_name))
    command("openssl", "req", "-new", *KEY, "-subj", f"/CN={role}", "-keyout", str(directory / f"{role}.key"),
            "-out", str(request))
    command(
        "openssl", "ca", "-batch", "-notext", "-config", str(config), "-cert", str(directory / "ca.pem"), "-keyfile",
        str(directory / "ca.key"), "-in", str(request), "-out", str(directory / f"{role}.pem"),
        "-startdate", start, "-enddate", end,
    )


def expired(directory, server_name):
    """A full set whose time is over."""
    directory = pathlib.Path(directory)
    authority(directory)
    for role in ROLES:
        issue(directory, role, server_name, "20200101000000Z", "20210101000000Z")


def install(directory, image, volume):
    """Replaces what a certificates volume holds."""
    copy = "rm -f /certs/*; cp /in/*.pem /in/*.key /certs/; chown 10001:10001 /certs/*; chmod 0600 /certs/*.key"
    docker("run", "--rm", "--user", "0", "--volume", f"{volume}:/certs", "--volume", f"{directory}:/in:ro", image,
           "sh", "-ec", copy)
