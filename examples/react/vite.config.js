import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';

// The gateway of `tidings serve --dev`, whose open sign-in gives the token.
const gateway = process.env.GATEWAY ?? 'http://127.0.0.1:8080';
const proxy = { target: gateway, ws: true };

export default defineConfig({ plugins: [react()], server: { proxy: { '/ws': proxy, '/events': proxy, '/demo': proxy } } });
