"""Real servers for journals, on free ports of this machine, that can be killed and started again on the same data."""

import os
import shutil
import signal
import socket
import subprocess
import time

PASSWORD = 's3cr/t@of the desk'
QUOTED = 's3cr%2Ft%40of%20the%20desk'
PACKAGES = {'redis': 'redis-server', 'nats': 'nats-server'}


def binary(name):
    "Where the server is; a `FileNotFoundError` says how to get it."
    found = shutil.which(name) or shutil.which(name, path='/usr/sbin:/usr/local/sbin')
    if not found: raise FileNotFoundError(f'{name} is missing: apt-get install {name}')
    return found


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as s: return s.getsockname()[1]


class Store:
    "A store for journals; where it is a server, one that can be killed and started again."
    def __init__(self, scheme, folder, *options, secret=False):
        self.scheme, self.folder, self.options, self.secret, self.process, self.port = scheme, folder, options, secret, None, 0
        folder.mkdir(exist_ok=True)
        if scheme == 'sqlite': self.url = f'sqlite:///{folder}/j.db'; return
        self.binary, self.port = binary(PACKAGES[scheme]), free_port()
        who = '' if not secret else f'default:{QUOTED}@' if scheme == 'redis' else f'desk:{QUOTED}@'
        self.url = f'{scheme}://{who}127.0.0.1:{self.port}/' + {'redis': '0', 'nats': 'desk'}[scheme]
        self.start()

    def start(self):
        if self.scheme == 'redis':
            command = [self.binary, '--port', str(self.port), '--bind', '127.0.0.1', '--dir', str(self.folder), '--save', '',
                       *(self.options or ('--appendonly', 'yes', '--appendfsync', 'always')), *(('--requirepass', PASSWORD) if self.secret else ())]
        else:
            command = [self.binary, '-a', '127.0.0.1', '-p', str(self.port), *(self.options or ('-js', '-sd', str(self.folder))),
                       *(('--user', 'desk', '--pass', PASSWORD) if self.secret else ())]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(6_000):
            if self.answers(): return
            time.sleep(0.01)
        raise AssertionError(f'{command} does not answer')

    def answers(self):
        try:
            with socket.create_connection(('127.0.0.1', self.port), timeout=1) as s:
                if self.scheme == 'nats': return s.recv(4) == b'INFO'
                s.sendall(b'PING\r\n')
                return s.recv(5) in (b'+PONG', b'-NOAU')
        except OSError: return False

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None: self.kill()
