// Values that nginx does not provide itself, for nginx.conf.

import crypto from 'crypto';

// SHA-256 of the client's certificate as 64 hexadecimal digits; empty without one. nginx itself knows SHA-1 only.
function sha256(r) {
    const pem = r.variables.ssl_client_raw_cert || '';
    const base64 = pem.replace(/-----[A-Z ]+-----|\s/g, '');
    return base64 && crypto.createHash('sha256').update(Buffer.from(base64, 'base64')).digest('hex');
}

// Ten seconds from now as an HTTP date: the form of Retry-After that every national backend reads.
function soon() {
    return new Date(Date.now() + 10000).toUTCString();
}

export default { sha256, soon };
