import { StrictMode } from 'react';
import { renderToString } from 'react-dom/server';
import { App } from './App';

/** The page as a server renders it: there is no window, and nothing connects. */
export const render = () => renderToString(<StrictMode><App /></StrictMode>);
